"""The timeline of the film strip: prompts, versions, keys, and what screen readers are told; both node designs."""

from __future__ import annotations

import json

import pytest
from helios_comfy_strip import (
    BANDS,
    BEGIN,
    CONNECT_SCHEDULE,
    FILM,
    FILM_SHOWN,
    IN_ONE_DESIGN,
    SECONDS,
    VIDEO,
    WIDGET,
    Strip,
    long_take,
)

from helios_setup.paths import ROOT
from helios_setup.server import ComfyServer

CHUNK_SECONDS = 33 / 24
SCHEDULE = "0: a calm sea\n2: a storm\n3: the sun"


def open_schedule(strip: Strip) -> None:
    strip.open(FILM, num_chunks=4)
    strip.page.evaluate(CONNECT_SCHEDULE, SCHEDULE)
    strip.page.wait_for_function("() => document.querySelectorAll('.helios-band').length === 3")


SCHEDULE_TEXT = """() => app.graph.nodes.find(({ type }) => type === 'HeliosPromptScheduleText')
  .widgets.find(({ name }) => name === 'text').value"""

WRITE_SCHEDULE = """(text) => {
  const widget = app.graph.nodes.find(({ type }) => type === 'HeliosPromptScheduleText')
    .widgets.find(({ name }) => name === 'text')
  widget.value = text
  app.api.dispatchEvent(new CustomEvent('graphChanged', { detail: {} }))
}"""


def drag_border(strip: Strip, row: int, chunk: int) -> None:
    border = strip.page.locator(f".helios-band-border[data-row='{row}']").bounding_box()
    cell = strip.cell(chunk).bounding_box()
    assert border and cell
    y = border["y"] + border["height"] / 2
    strip.page.mouse.move(border["x"] + border["width"] / 2, y)
    strip.page.mouse.down()
    strip.page.mouse.move(cell["x"] + 3, y, steps=4)
    strip.page.mouse.up()


@IN_ONE_DESIGN
def test_borders_of_prompts_are_dragged_and_only_what_follows_is_made_anew(strip: Strip) -> None:
    open_schedule(strip)
    strip.run()
    strip.until("finished")
    strip.screenshot("bands")
    drag_border(strip, 1, 1)
    strip.page.wait_for_function("() => document.querySelectorAll('.helios-cell[data-stale]').length === 3")
    assert strip.page.evaluate(SCHEDULE_TEXT) == "0: a calm sea\n1: a storm\n3: the sun"
    assert [cell["stale"] for cell in strip.cells()] == [False, True, True, True]
    strip.screenshot("dragged")
    strip.run()
    strip.until("finished")
    assert [cell["reused"] for cell in strip.cells()] == [True, False, False, False]
    assert not any(cell["stale"] for cell in strip.cells())
    # No further than its neighbours, by keys too.
    drag_border(strip, 2, 0)
    assert strip.page.evaluate(SCHEDULE_TEXT) == "0: a calm sea\n1: a storm\n2: the sun"
    border = strip.page.locator(".helios-band-border[data-row='2']")
    border.focus()
    # What is drawn anew meanwhile keeps the keyboard.
    strip.page.evaluate(WRITE_SCHEDULE, "0: a calm sea\n1: a gale\n2: the sun")
    strip.page.wait_for_function("() => [...document.querySelectorAll('.helios-band')][1].textContent === 'a gale'")
    for _ in range(3):
        strip.page.keyboard.press("ArrowRight")
    assert strip.page.evaluate(SCHEDULE_TEXT) == "0: a calm sea\n1: a gale\n3: the sun"
    assert border.get_attribute("aria-valuenow") == "4"
    strip.check_page()


@IN_ONE_DESIGN
def test_prompts_are_split_and_written_on_the_timeline(strip: Strip) -> None:
    open_schedule(strip)
    strip.page.locator(".helios-band").nth(1).dblclick()
    field = strip.page.locator(".helios-band-field")
    field.fill("a great storm")
    field.press("Enter")
    assert strip.page.evaluate(SCHEDULE_TEXT) == "0: a calm sea\n2: a great storm\n3: the sun"
    strip.cell(1).click()
    strip.page.locator(".helios-timeline-cells").press("s")
    assert field.input_value() == "a calm sea"
    field.fill("never mind")
    field.press("Escape")
    assert strip.page.evaluate(SCHEDULE_TEXT).startswith("0: a calm sea\n1: a calm sea\n2:")
    # A film of one prompt has none to split, and its text is the prompt's own.
    strip.open(FILM, num_chunks=2)
    strip.page.locator(".helios-band").dblclick()
    field.fill("a lighthouse")
    field.press("Enter")
    strip.page.wait_for_function(f"() => ({BANDS})()[0] === 'a lighthouse'")
    assert '"a lighthouse"' in json.dumps(strip.frontend.prompt())
    strip.press("split")
    strip.page.get_by_text("connect Helios Prompt Schedule (Text)").wait_for()
    strip.check_page()


VERSIONS = """() => [...document.querySelectorAll('.helios-version video')]
  .filter(video => video.readyState >= 2).length"""


@IN_ONE_DESIGN
def test_versions_of_a_chunk_are_made_side_by_side_and_one_is_picked(strip: Strip, comfy: ComfyServer) -> None:
    others = spares(comfy)
    strip.open(FILM, num_chunks=3)
    strip.run()
    strip.until("finished")
    output = comfy.log_file.parent / "output"
    films = set(output.glob("*.mp4"))
    strip.cell(1).click()
    strip.press("roll")
    strip.page.wait_for_function(f"() => ({VERSIONS})() === 4", timeout=SECONDS)
    strip.screenshot("versions")
    assert set(output.glob("*.mp4")) == films, "versions are kept in the store alone"
    assert strip.page.evaluate(WIDGET, "seed_changes") == "", "and change nothing of the workflow"
    versions = strip.page.locator(".helios-version")
    seeds_made = [versions.nth(index).get_attribute("data-seed") for index in range(4)]
    assert len(set(seeds_made)) == 4 and versions.nth(0).get_attribute("data-current") == "true"
    before = strip.frontend.prompt()
    strip.run(versions.nth(2).locator("[data-action=pick]").click)
    strip.until("finished")
    # The picked one is in the store: the film samples what follows alone.
    assert [cell["reused"] for cell in strip.cells()] == [True, True, False]
    after = strip.frontend.prompt()
    (film,) = [node for node in before if before[node]["class_type"] == "HeliosRenderVideo"]
    assert after[film]["inputs"].pop("seed_changes") == f"1: {seeds_made[2]}"
    assert before[film]["inputs"].pop("seed_changes", "") == "" and after == before
    # All stay until they are cleared, but for those of films: what was in the first one can be picked again.
    strip.cell(1).click()
    strip.press("roll")
    strip.page.wait_for_function(f"() => ({VERSIONS})() === 4", timeout=SECONDS)
    strip.page.locator("[data-action=clear]").click()
    strip.page.wait_for_function("() => document.querySelectorAll('.helios-version').length === 2")
    assert spares(comfy) <= others
    strip.check_page()


def spares(comfy: ComfyServer) -> set[str]:
    """The takes that are kept in the store alone; what other tests have left drops out of the list of recent ones."""
    return {take["id"] for take in comfy.get("/helios/takes")["takes"] if take["store_only"]}


@IN_ONE_DESIGN
def test_keys_play_and_move(strip: Strip) -> None:
    strip.open(FILM, num_chunks=2)
    strip.run()
    strip.until("finished")
    strip.page.wait_for_function(FILM_SHOWN, timeout=SECONDS)
    cells = strip.page.locator(".helios-timeline-cells")
    cells.press("ArrowRight")
    strip.page.wait_for_function(f"() => Math.abs({VIDEO}.currentTime - {CHUNK_SECONDS}) < 0.1 && {VIDEO}.paused")
    cells.press("Home")
    cells.press(" ")
    strip.page.wait_for_function(f"() => !{VIDEO}.paused && {VIDEO}.currentTime > 0.1")
    cells.press(" ")
    strip.page.wait_for_function(f"() => {VIDEO}.paused")
    strip.press("enlarge")
    strip.page.locator("dialog .helios-strip-inner").wait_for()
    strip.screenshot("enlarged")
    strip.page.keyboard.press("Escape")
    strip.page.locator(".helios-strip > .helios-strip-inner").wait_for()
    strip.check_page()


AXE = ROOT / "tools" / "web" / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = """async (selector) => {
  const { violations } = await axe.run(selector)
  return violations.filter(({ impact }) => ['serious', 'critical'].includes(impact))
    .flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html.slice(0, 200)} ${node.failureSummary}`))
}"""
PALETTE = "name => app.extensionManager.setting.set('Comfy.ColorPalette', name)"
NARROW = """(width) => {
  const node = app.graph.nodes.find(({ type }) => type === 'HeliosRenderVideo')
  node.setSize([width, node.size[1]])
}"""


@IN_ONE_DESIGN
@pytest.mark.parametrize("palette", ["light", "dark"])
def test_screen_readers_and_palettes(strip: Strip, comfy: ComfyServer, palette: str) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm ci --prefix tools/web")
    open_schedule(strip)
    if not comfy.get("/helios/library")["takes"]:
        strip.run()
        strip.until("finished")
    strip.page.evaluate(PALETTE, palette)
    strip.page.evaluate(NARROW, 300)
    strip.page.evaluate(BEGIN, {**long_take(strip, 44, 6), "status": "interrupted", "resumable": True})
    strip.until("interrupted")
    if strip.page.locator(".helios-panel").count() == 0:
        strip.page.locator(".helios-takes-tab-button").click()
    strip.page.locator(".helios-panel-item").first.wait_for()
    strip.page.wait_for_timeout(300)  # the sidebar slides
    strip.screenshot(f"palette-{palette}")
    strip.page.add_script_tag(path=AXE)
    for part in (".helios-strip", ".helios-panel", ".helios-schedule", ".helios-model"):
        assert strip.page.evaluate(SERIOUS, part) == [], part
    # It can fail.
    strip.page.evaluate("() => document.querySelector('.helios-player-range').removeAttribute('aria-label')")
    assert "label" in " ".join(strip.page.evaluate(SERIOUS, ".helios-strip"))
    strip.page.locator(".helios-takes-tab-button").click()
    strip.page.evaluate(PALETTE, "dark")
    strip.check_page()
