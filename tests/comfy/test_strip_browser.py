"""The film strip in the frontend that ComfyUI ships, driven by a real browser: both node designs."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helios_tools import frontend as browser

from helios_setup.paths import PACK_NAME, ROOT
from helios_setup.server import ComfyServer

FILM, CLIP = "Helios Distilled - Long Video", "Helios Distilled - Text to Video"
TINY = "helios-tiny-distilled"
MOST_BYTES = 125_000
CHUNK_SECONDS = 33 / 24
SECONDS = 120_000
seeds = itertools.count(50_000)

SET_WIDGETS = """(values) => {
  for (const node of app.graph.nodes)
    for (const widget of node.widgets ?? [])
      if (widget.name in values) {
        // A size that comes from the model, until one is typed.
        const slot = node.inputs?.findIndex(input => input.widget?.name === widget.name && input.link != null) ?? -1
        if (slot >= 0) node.disconnectInput(slot)
        widget.value = values[widget.name]
        widget.callback?.(widget.value)
      }
  // As the page does once a user has changed something.
  window.comfyAPI.api.api.dispatchEvent(new CustomEvent('graphChanged', { detail: {} }))
}"""
WIDGET = """(name) => app.graph.nodes.flatMap(node => node.widgets ?? []).find(widget => widget.name === name).value"""
CELLS = """() => [...document.querySelectorAll('.helios-cell')].map(cell => ({
  chunk: Number(cell.dataset.chunk), state: cell.dataset.state,
  reused: !cell.querySelector('.helios-cell-reused').hidden, drift: !cell.querySelector('.helios-cell-drift').hidden,
  stale: 'stale' in cell.dataset,
  picture: cell.querySelector('img')?.naturalWidth ?? 0,
})).sort((a, b) => a.chunk - b.chunk)"""
BANDS = """() => [...document.querySelectorAll('.helios-band')].map(band => band.innerText.trim())"""
RECORD = """() => {
  window.heliosFinished = []
  new MutationObserver(changes => {
    for (const { target: { dataset } } of changes)
      if (dataset.state === 'finished') window.heliosFinished.push(Number(dataset.chunk))
  }).observe(document.querySelector('.helios-strip'), { subtree: true, attributeFilter: ['data-state'] })
}"""
TAKE = "() => document.querySelector('.helios-strip')?.dataset.take ?? null"
VIDEO = "document.querySelector('.helios-player-video:not([hidden])')"
PLAYING = f"() => ({VIDEO}?.readyState ?? 0) >= 2"
FILM_SHOWN = f"() => {VIDEO}?.src.includes('/view?') && {VIDEO}.readyState >= 2"
# What the frontend itself would show of a node's film: the classic design as widgets, the new one below the widgets.
BESIDE = """() => {
  const node = app.graph.nodes.find(({ widgets }) => widgets?.some(({ name }) => name === 'film_strip'))
  const own = ['video-preview', '$$canvas-image-preview', '$$node-text-preview']
  const body = document.querySelector('.helios-strip').closest('[data-testid^=node-body-]')
  const shown = [...(body?.querySelectorAll('img, video') ?? [])].filter(
    element => !element.closest('.helios-strip') && element.checkVisibility())
  const widgets = node.widgets.filter(({ name }) => own.includes(name)).map(({ name }) => name)
  return [...widgets, ...shown.map(element => element.tagName)]
}"""
INSIDE_GROUP = """() => {
  const node = app.graph.nodes.find(({ widgets }) => widgets?.some(({ name }) => name === 'film_strip'))
  const [, top, , height] = node.graph.groups.find(({ title }) => title.endsWith('Video'))._bounding
  const shown = document.querySelector(`[data-testid="node-body-${node.id}"]`)?.closest('[data-node-id]')
  return node.pos[1] + (shown ? shown.offsetHeight - 30 : node.size[1]) <= top + height
}"""
# Counts what our files add and do not take away again: listeners on lasting objects, timers and observers.
COUNT = """
window.heliosLive = { listeners: 0, intervals: 0, observers: 0 }
const live = window.heliosLive
const ours = () => new Error().stack.includes('/extensions/%s/')
const { addEventListener, removeEventListener } = EventTarget.prototype
EventTarget.prototype.addEventListener = function (...values) {
  if (ours()) live.listeners++
  return addEventListener.apply(this, values)
}
EventTarget.prototype.removeEventListener = function (...values) {
  if (ours()) live.listeners--
  return removeEventListener.apply(this, values)
}
const { setInterval, clearInterval } = window
window.setInterval = (...values) => { if (ours()) live.intervals++; return setInterval(...values) }
window.clearInterval = (id) => { if (ours()) live.intervals--; clearInterval(id) }
const { observe, disconnect } = ResizeObserver.prototype
ResizeObserver.prototype.observe = function (...values) { if (ours()) live.observers++; observe.apply(this, values) }
ResizeObserver.prototype.disconnect = function () { if (ours()) live.observers--; disconnect.apply(this) }
"""


class Strip:
    """The film strip of the workflow that is open in `frontend`."""

    def __init__(self, frontend: Any, design: str, screenshots: Path) -> None:
        self.frontend, self.page, self.design, self._screenshots = frontend, frontend.page, design, screenshots

    def open(self, template: str, **values: Any) -> None:
        """Open a template on helios-tiny, as small as it can be."""
        workflow = json.loads((ROOT / "workflows" / f"{template}.json").read_text(encoding="utf-8"))
        # Its own id: a strip also shows the last take of a workflow that is opened again.
        self.frontend.load_template({**workflow, "id": str(uuid.uuid4())}, template)
        small = {"width": 64, "height": 64, "steps": "1, 1, 1", "filename_prefix": "strip", "seed": next(seeds)}
        self.set(model=TINY, text_encoder=TINY, vae=TINY, **small | {"amplify_first_chunk": False} | values)

    def set(self, **values: Any) -> None:
        self.page.evaluate(SET_WIDGETS, values)

    def run(self, click: Callable[[], None] | None = None) -> None:
        """Click the Run button, or something else that queues, and wait for the take; another may be shown before."""
        before = self.page.evaluate(TAKE)
        (click or self.page.get_by_test_id("queue-button").click)()
        self.page.wait_for_function(f"before => ({TAKE})() !== before", arg=before, timeout=SECONDS)

    def until(self, status: str) -> None:
        self.page.wait_for_selector(f".helios-strip[data-status={status}]", timeout=SECONDS)

    def until_finished(self, chunks: int) -> None:
        count = "document.querySelectorAll('.helios-cell[data-state=finished]').length"
        self.page.wait_for_function(f"() => {count} >= {chunks}", timeout=SECONDS)

    def until_pictures(self, chunks: int) -> None:
        count = "[...document.querySelectorAll('.helios-cell img')].filter(image => image.naturalWidth).length"
        self.page.wait_for_function(f"() => {count} >= {chunks}", timeout=SECONDS)

    def cells(self) -> list[dict[str, Any]]:
        return self.page.evaluate(CELLS)

    def cell(self, chunk: int) -> Any:
        return self.page.locator(f".helios-cell[data-chunk='{chunk}']")

    def play(self, chunk: int) -> float:
        """Click a finished chunk; the seconds of what plays."""
        self.cell(chunk).click()
        self.page.wait_for_function(PLAYING, timeout=SECONDS)
        return self.page.evaluate(f"() => {VIDEO}.duration")

    def press(self, action: str) -> None:
        self.page.locator(f".helios-strip [data-action={action}]").click()

    def text(self) -> str:
        return self.page.locator(".helios-strip").inner_text()

    def screenshot(self, name: str) -> None:
        self.page.screenshot(path=self._screenshots / f"strip-{name}-{self.design}.png")

    def check_page(self) -> None:
        assert self.frontend.problems() == []
        assert self.frontend.errors == []


@pytest.fixture(scope="module", params=["classic", "new-design"])
def strip(request: pytest.FixtureRequest, comfy: ComfyServer, chromium: str, screenshots: Path) -> Iterator[Strip]:
    """The frontend in one of its two node designs."""
    settings = {"Comfy.VueNodes.Enabled": request.param == "new-design"}
    with browser.open_frontend(comfy.url, chromium, **settings) as opened:
        opened.page.add_init_script(COUNT % PACK_NAME)
        opened.start()
        yield Strip(opened, request.param, screenshots)


def test_strip_fills_chunk_by_chunk_and_shows_the_film(strip: Strip) -> None:
    strip.open(FILM, num_chunks=4, width=128)
    assert strip.page.evaluate(TAKE) is None and "Press Run" in strip.text()
    strip.page.wait_for_function("() => document.querySelectorAll('.helios-cell[data-state=waiting]').length === 4")
    assert strip.page.evaluate(BANDS)[0].startswith("A small red sailing boat")
    strip.screenshot("before")
    strip.page.evaluate(RECORD)
    strip.run()
    strip.until_finished(2)
    strip.screenshot("half-way")
    strip.until("finished")
    strip.until_pictures(4)
    cells = strip.cells()
    assert [cell["chunk"] for cell in cells] == [0, 1, 2, 3]
    assert {(cell["state"], cell["reused"], cell["picture"]) for cell in cells} == {("finished", False, 160)}
    assert strip.page.evaluate("() => window.heliosFinished") == [0, 1, 2, 3]
    assert f"{4 * CHUNK_SECONDS:.1f} s of film" in strip.text() and "4 of 4 chunks, finished" in strip.text()
    strip.page.wait_for_function(FILM_SHOWN, timeout=SECONDS)
    assert strip.play(1) == pytest.approx(4 * CHUNK_SECONDS, abs=0.05)
    strip.page.wait_for_function(f"() => {VIDEO}.currentTime > {CHUNK_SECONDS}")
    strip.screenshot("playing")
    # One player, in its place: neither the frontend's film nor its last preview nor a line of text.
    assert strip.page.evaluate(BESIDE) == []
    assert strip.page.evaluate(INSIDE_GROUP)
    strip.check_page()


def test_roll_again_samples_only_what_follows(strip: Strip) -> None:
    strip.open(FILM, num_chunks=4)
    strip.run()
    strip.until("finished")
    # As if the seed were set to change after every queue.
    seed = strip.page.evaluate(WIDGET, "seed")
    strip.set(seed=seed + 1)
    strip.cell(2).click()
    strip.run(lambda: strip.page.keyboard.press("r"))
    strip.until("finished")
    assert [cell["reused"] for cell in strip.cells()] == [True, True, False, False]
    assert strip.page.evaluate(WIDGET, "seed") == seed
    changes = strip.page.evaluate(WIDGET, "seed_changes")
    assert changes.startswith("2: ")
    assert strip.cell(2).locator(".helios-cell-seed").is_visible()
    assert changes.removeprefix("2: ") in strip.cell(2).get_attribute("title")
    # Once more, and from an earlier chunk too: the text keeps the later change.
    strip.play(1)
    strip.run(lambda: strip.press("redo"))
    assert strip.page.evaluate(WIDGET, "seed_changes").endswith(f", {changes}")
    strip.until("finished")
    assert [cell["reused"] for cell in strip.cells()] == [True, False, False, False]
    strip.page.wait_for_function(FILM_SHOWN, timeout=SECONDS)
    strip.screenshot("again")
    strip.check_page()


def test_reload_restores_the_strip_and_interrupt_leaves_its_parts(strip: Strip, comfy: ComfyServer) -> None:
    strip.open(FILM, num_chunks=44)
    strip.run()
    strip.until_finished(3)
    strip.frontend.start()
    strip.until("running")
    strip.until_finished(4)
    assert "of 44 chunks" in strip.text()
    strip.screenshot("restored")
    comfy.interrupt()
    strip.until("interrupted")
    assert "stopped" in strip.text()
    strip.page.locator(".helios-timeline-cells").press("Home")
    finished = [cell["chunk"] for cell in strip.cells() if cell["state"] == "finished"]
    assert finished[:4] == [0, 1, 2, 3]
    # Parts of a film that has no file yet: the player goes over their borders as over one film.
    assert strip.play(0) == pytest.approx(CHUNK_SECONDS, abs=0.05)
    strip.page.wait_for_function(f"() => {VIDEO}.src.includes('/1/video') && {VIDEO}.currentTime > 0")
    strip.page.locator(".helios-player-range").fill(str(2.5 * CHUNK_SECONDS))
    strip.page.wait_for_function(f"() => {VIDEO}.src.includes('/2/video') && {VIDEO}.currentTime > {CHUNK_SECONDS / 3}")
    assert strip.cell(2).get_attribute("aria-selected") == "true"
    strip.run(lambda: strip.press("resume"))
    strip.cell(0).locator(".helios-cell-reused").wait_for(timeout=SECONDS)
    comfy.interrupt()
    strip.until("interrupted")
    assert strip.frontend.errors == []


def test_chunk_chain_shows_moving_pictures(strip: Strip) -> None:
    strip.open(CLIP, num_chunks=2)
    strip.run()
    strip.until("finished")
    strip.until_pictures(2)
    strip.cell(1).click()
    shown = ".helios-player-picture:not([hidden])"
    strip.page.wait_for_function(f"() => document.querySelector('{shown}')?.src.endsWith('/1/thumbnail')")
    strip.screenshot("chain")
    strip.check_page()


def test_strip_stays_out_of_saved_and_queued_workflows(strip: Strip) -> None:
    workflow = json.loads((ROOT / "workflows" / f"{FILM}.json").read_text(encoding="utf-8"))
    strip.frontend.load_template(workflow, FILM)
    (node,) = [node for node in strip.frontend.serialized()["nodes"] if node["type"] == "HeliosRenderVideo"]
    (saved,) = [node for node in workflow["nodes"] if node["type"] == "HeliosRenderVideo"]
    length = len(saved["widgets_values"])
    assert node["widgets_values"][:length] == saved["widgets_values"]
    optional = node["widgets_values"][length:]  # at the end, with their defaults
    assert [value for value in optional if value not in ("", True, 0)] == []
    assert "film_strip" not in strip.frontend.prompt()[str(node["id"])]["inputs"]


CAPTURE = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"
RETITLE = "() => { app.graph.nodes.find((node) => node.type === 'HeliosRenderVideo').title = 'Another name' }"
UNDO = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()"
ON_SCREEN = """() => {
  const node = app.graph.nodes.find((node) => node.type === 'HeliosRenderVideo')
  const strip = node.widgets.find((widget) => widget.name === 'film_strip')
  return node.title !== 'Another name' && strip.element.isConnected
}"""


def test_undo_shows_the_strip_of_the_node_that_is_there_now(strip: Strip) -> None:
    strip.open(FILM, num_chunks=2)
    for change in (CAPTURE, RETITLE, CAPTURE, UNDO):
        strip.page.evaluate(change)
    strip.page.wait_for_function(ON_SCREEN, timeout=SECONDS)
    strip.check_page()


BEGIN = """(take) => window.comfyAPI.api.api.dispatchEvent(
  new CustomEvent('helios.take', { detail: { version: 1, kind: 'start', id: take.id, take } }))"""
CHANGE = """([id, chunk, progress]) => window.comfyAPI.api.api.dispatchEvent(
  new CustomEvent('helios.take', { detail: { version: 1, kind: 'chunk', id, chunk, progress } }))"""


IN_WINDOW = """(chunk) => {
  const cell = document.querySelector(`.helios-cell[data-chunk='${chunk}']`)?.getBoundingClientRect()
  const window = document.querySelector('.helios-timeline').getBoundingClientRect()
  return cell && window.left - 1 <= cell.left && cell.right <= window.right + 1
}"""


def long_take(strip: Strip, chunks: int, finished: int) -> dict[str, Any]:
    """A running take of the open workflow's film, whose prompt changes at chunk 7, as an event tells it."""
    (node,) = [node["id"] for node in strip.frontend.serialized()["nodes"] if node["type"] == "HeliosRenderVideo"]
    return {
        "id": uuid.uuid4().hex, "node": str(node), "prompt_id": "p", "workflow": strip.frontend.serialized()["id"],
        "name": "", "first_chunk": 0, "num_chunks": chunks, "chunk_frames": 33, "film_fps": 24, "width": 640,
        "height": 384, "seed": 1, "seed_changes": [[5, 77]], "rows": [[0, "a calm sea"], [7, "a storm"]],
        "status": "running", "message": "", "progress": {"film_seconds": 0, "fps": None, "seconds_left": None},
        "chunks": [
            {"chunk": chunk, "state": "finished", "reused": chunk < 5, "thumbnail": False, "video": False,
             "anti_drift": chunk in (3, 19)}
            for chunk in range(finished)
        ],
        "film": None, "resumable": False,
    }  # fmt: skip


def test_every_state_of_a_long_film_is_drawn(strip: Strip) -> None:
    """States that last a moment on helios-tiny, in a film of 44 chunks whose prompt changes."""
    strip.open(FILM)
    strip.page.mouse.move(800, 860)  # under the pointer the strip does not scroll by itself
    take = long_take(strip, 44, 20)
    strip.page.evaluate(BEGIN, take)
    strip.page.get_by_text("20 of 44 chunks, rendering").wait_for()
    numbers = strip.page.locator(".helios-strip-numbers")
    assert numbers.inner_text() == "0.0 s of film", "nothing is told that is not known"
    progress = {"film_seconds": 27.5, "fps": 12.34, "seconds_left": 3725}
    strip.page.evaluate(CHANGE, [take["id"], {"chunk": 21, "state": "decoding", "reused": True}, progress])
    sampling = {"chunk": 20, "state": "sampling", "stage": 1, "step": 3, "total": 6, "reused": False}
    strip.page.evaluate(CHANGE, [take["id"], sampling, progress])
    # The chunk at work is scrolled into the strip's window.
    strip.page.wait_for_function(IN_WINDOW, arg=20)
    for state in ("decoding", "sampling"):
        strip.page.wait_for_selector(f".helios-cell[data-state={state}]")
    states = {cell["chunk"]: (cell["state"], cell["reused"]) for cell in strip.cells()}
    assert [states[chunk] for chunk in range(19, 23)] == [
        ("finished", False), ("sampling", False), ("decoding", True), ("waiting", False)
    ]  # fmt: skip
    assert strip.page.evaluate(BANDS) == ["a calm sea", "a storm"]
    assert [cell["chunk"] for cell in strip.cells() if cell["drift"]] == [19]
    assert strip.cell(20).locator(".helios-cell-number").text_content() == "21"
    assert strip.cell(20).locator(".helios-cell-fill").evaluate("fill => fill.style.width") == "50%"
    text = strip.text()
    assert "20 of 44 chunks, chunk 21: stage 2, step 3 of 6" in text
    assert "27.5 s of film · 12.3 fps · 1:02:05 left" in text
    strip.screenshot("44-chunks")
    for chunk in range(20, 44):
        done = {"chunk": chunk, "state": "finished", "reused": False, "thumbnail": False, "video": False}
        strip.page.evaluate(CHANGE, [take["id"], done, {**progress, "seconds_left": 0}])
    strip.page.get_by_text("44 of 44 chunks, writing the file").wait_for()
    assert " left" not in numbers.inner_text()
    strip.check_page()


FRAMES = """async () => {
  const line = document.querySelector('.helios-timeline')
  const times = []
  for (let frame = 0; frame < 90; frame++) {
    line.scrollLeft += 150
    times.push(await new Promise(requestAnimationFrame))
  }
  return times.map((time, i) => time - (times[i - 1] ?? time)).slice(1).sort((a, b) => a - b)
}"""


def test_four_hundred_chunks_are_few_elements(strip: Strip) -> None:
    strip.open(FILM)
    take = long_take(strip, 400, 390)
    strip.page.evaluate(BEGIN, take)
    strip.page.wait_for_function("() => document.querySelectorAll('.helios-cell').length > 5")
    between = strip.page.evaluate(FRAMES)
    print(f"median {between[len(between) // 2]:.1f} ms, 90 % {between[len(between) * 9 // 10]:.1f} ms a frame")
    assert len(strip.cells()) < 40 and strip.cells()[0]["chunk"] > 200
    strip.page.locator(".helios-timeline-cells").press("End")
    strip.page.wait_for_function(IN_WINDOW, arg=399)
    active = (
        "() => document.getElementById(document.querySelector('[role=listbox]').getAttribute('aria-activedescendant'))"
    )
    assert strip.page.evaluate(f"() => ({active})().dataset.chunk") == "399"
    strip.check_page()


SCHEDULE = "0: a calm sea\n2: a storm\n3: the sun"


def open_schedule(strip: Strip) -> None:
    strip.open(FILM, num_chunks=4)
    strip.page.evaluate(CONNECT_SCHEDULE, SCHEDULE)
    strip.page.wait_for_function("() => document.querySelectorAll('.helios-band').length === 3")


CONNECT_SCHEDULE = """(text) => {
  const film = app.graph.nodes.find(({ type }) => type === 'HeliosRenderVideo')
  const model = app.graph.nodes.find(({ type }) => type === 'HeliosLoadModel')
  const schedule = LiteGraph.createNode('HeliosPromptScheduleText')
  schedule.pos = [-500, 900]
  app.graph.add(schedule)
  model.connect(model.outputs.findIndex(({ type }) => type === 'CLIP'), schedule, 'clip')
  schedule.connect(0, film, 'positive')
  const values = { text, blend: 0 }
  for (const widget of schedule.widgets)
    if (widget.name in values) { widget.value = values[widget.name]; widget.callback?.(widget.value) }
  window.comfyAPI.api.api.dispatchEvent(new CustomEvent('graphChanged', { detail: {} }))
}"""
SCHEDULE_TEXT = """() => app.graph.nodes.find(({ type }) => type === 'HeliosPromptScheduleText')
  .widgets.find(({ name }) => name === 'text').value"""


def drag_border(strip: Strip, row: int, chunk: int) -> None:
    border = strip.page.locator(f".helios-band-border[data-row='{row}']").bounding_box()
    cell = strip.cell(chunk).bounding_box()
    assert border and cell
    y = border["y"] + border["height"] / 2
    strip.page.mouse.move(border["x"] + border["width"] / 2, y)
    strip.page.mouse.down()
    strip.page.mouse.move(cell["x"] + 3, y, steps=4)
    strip.page.mouse.up()


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
    for _ in range(3):
        strip.page.keyboard.press("ArrowRight")
    assert strip.page.evaluate(SCHEDULE_TEXT) == "0: a calm sea\n1: a storm\n3: the sun"
    assert border.get_attribute("aria-valuenow") == "4"
    strip.check_page()


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


def test_versions_of_a_chunk_are_made_side_by_side_and_one_is_picked(strip: Strip, comfy: ComfyServer) -> None:
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
    assert [take for take in comfy.get("/helios/takes")["takes"] if take["store_only"]] == []
    strip.check_page()


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
    for part in (".helios-strip", ".helios-panel"):
        assert strip.page.evaluate(SERIOUS, part) == []
    # It can fail.
    strip.page.evaluate("() => document.querySelector('.helios-player-range').removeAttribute('aria-label')")
    assert "label" in " ".join(strip.page.evaluate(SERIOUS, ".helios-strip"))
    strip.page.locator(".helios-takes-tab-button").click()
    strip.page.evaluate(PALETTE, "dark")
    strip.check_page()


FOREIGN = """(take) => {
  const send = (detail) => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('helios.take', { detail }))
  const progress = { film_seconds: 1, fps: 1, seconds_left: 1 }
  const chunk = { chunk: 0, state: 'finished', reused: false, thumbnail: true, video: true }
  send(null)
  send({ version: 2, kind: 'novelty', id: 'f'.repeat(32) })
  send({ version: 1, kind: 'chunk', id: 'f'.repeat(32), chunk, progress })
  send({ version: 1, kind: 'end', id: 'f'.repeat(32), status: 'failed', message: 'x', progress })
  send({ version: 1, kind: 'start', id: 'e'.repeat(32), take: { ...take, id: 'e'.repeat(32), workflow: 'another' } })
  send({ version: 1, kind: 'start', id: 'd'.repeat(32), take: { ...take, id: 'd'.repeat(32), node: '99:1' } })
  send({ version: 1, kind: 'chunk', id: take.id, chunk: { ...chunk, chunk: 1000, thumbnail: false }, progress })
}"""


def test_a_server_that_goes_away_is_told_and_what_it_lost_was_stopped(strip: Strip) -> None:
    """A take that no server will know: its process was killed before its first chunk was kept."""
    strip.open(FILM)
    take = long_take(strip, 8, 0)
    strip.page.evaluate(BEGIN, take)
    strip.until("running")
    tell = "name => window.comfyAPI.api.api.dispatchEvent(new CustomEvent(name))"
    strip.page.evaluate(tell, "reconnecting")
    strip.page.get_by_text("0 of 8 chunks, ComfyUI is away").wait_for()
    strip.page.evaluate(tell, "reconnected")
    strip.page.get_by_text("0 of 8 chunks, stopped").wait_for()
    strip.page.get_by_text("ComfyUI stopped before the first chunk was finished.").wait_for()
    strip.check_page()


def test_foreign_events_change_nothing(strip: Strip, comfy: ComfyServer) -> None:
    strip.open(FILM, num_chunks=1)
    strip.run()
    strip.until("finished")
    strip.until_pictures(1)
    before = strip.cells()
    strip.page.evaluate(FOREIGN, comfy.get("/helios/takes")["takes"][-1])
    strip.page.wait_for_load_state("networkidle")
    assert strip.cells() == before
    strip.check_page()


def test_emptied_store_and_unreadable_changes_are_told_calmly(strip: Strip, comfy: ComfyServer) -> None:
    store = comfy.log_file.parent / "output" / "helios_store"
    others = set(store.glob("*.segment.mp4"))
    strip.open(FILM, num_chunks=1)
    strip.run()
    strip.until("finished")
    (own,) = set(store.glob("*.segment.mp4")) - others
    own.unlink()
    file = comfy.log_file.parent / "output" / comfy.get("/helios/takes")["takes"][-1]["film"]["filename"]
    file.unlink()
    # After a reload film and picture are asked for again, and are gone.
    strip.frontend.start()
    strip.until("finished")
    strip.cell(0).click()
    strip.page.get_by_text("no longer in the store").wait_for()
    strip.set(seed_changes="seven")
    strip.press("redo")
    strip.page.get_by_text("seed_changes cannot be read").wait_for()
    strip.screenshot("gone")
    assert strip.page.evaluate(WIDGET, "seed_changes") == "seven"
    # Chromium itself notes that core has no such film.
    assert [error for error in strip.frontend.errors if "404" not in error] == []
    strip.frontend.errors.clear()


def test_twenty_takes_add_no_listeners_or_timers(strip: Strip) -> None:
    live = "() => ({ ...window.heliosLive })"
    strip.open(FILM, num_chunks=1)
    strip.run()
    strip.until("finished")
    strip.play(0)
    first = strip.page.evaluate(live)
    assert first["listeners"] > 0 and first["observers"] > 0, "the count sees the strip at all"
    ended = "() => window.heliosEnded >= 20"
    strip.page.evaluate(
        "() => { window.heliosEnded = 0; window.comfyAPI.api.api.addEventListener('helios.take', "
        "({ detail }) => { if (detail.kind === 'end') window.heliosEnded++ }) }"
    )
    for take in range(20):
        # Another file of the same chunk: a whole take that samples nothing.
        strip.set(filename_prefix=f"strip{take}")
        strip.page.evaluate("() => app.queuePrompt(0, 1)")
    strip.page.wait_for_function(ended, timeout=2 * SECONDS)
    strip.play(0)
    assert strip.page.evaluate(live) == first
    # Removing the node takes its observer away, and what it listens to went with its elements.
    strip.page.evaluate("() => app.graph.remove(app.graph.nodes.find(({ type }) => type === 'HeliosRenderVideo'))")
    after = strip.page.evaluate(live)
    assert (after["observers"], after["intervals"]) == (first["observers"] - 1, 0)
    assert strip.page.locator(".helios-strip").count() == 0
    assert strip.frontend.errors == []


def test_extension_is_small() -> None:
    assert sum(file.stat().st_size for file in (ROOT / "web").rglob("*.js")) < MOST_BYTES
