"""The film strip in the frontend that ComfyUI ships, driven by a real browser: both node designs."""

from __future__ import annotations

import json

import pytest
from helios_comfy_strip import (
    BANDS,
    BEGIN,
    CHANGE,
    CLIP,
    FILM,
    FILM_SHOWN,
    IN_ONE_DESIGN,
    IN_WINDOW,
    SECONDS,
    TAKE,
    VIDEO,
    WIDGET,
    Strip,
    long_take,
)

from helios_setup.paths import ROOT
from helios_setup.server import ComfyServer

MOST_BYTES, MOST_STYLE = 125_000, 12_000
CHUNK_SECONDS = 33 / 24

RECORD = """() => {
  window.heliosFinished = []
  new MutationObserver(changes => {
    for (const { target: { dataset } } of changes)
      if (dataset.state === 'finished') window.heliosFinished.push(Number(dataset.chunk))
  }).observe(document.querySelector('.helios-strip'), { subtree: true, attributeFilter: ['data-state'] })
}"""
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


@IN_ONE_DESIGN
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


@IN_ONE_DESIGN
def test_reload_restores_the_strip_and_interrupt_leaves_its_parts(strip: Strip, comfy: ComfyServer) -> None:
    strip.open(FILM, num_chunks=400)
    strip.run()
    strip.until_finished(3)
    strip.frontend.start()
    strip.until("running")
    strip.until_finished(4)
    assert "of 400 chunks" in strip.text()
    strip.screenshot("restored")
    comfy.interrupt()
    strip.until("interrupted")
    assert "stopped" in strip.text()
    strip.page.locator(".helios-timeline-cells").press("Home")
    strip.cell(0).wait_for(timeout=SECONDS)  # a long film's cells are drawn where one looks
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
    assert "27.5 s of film · 12.3 fps · 0.51× real time · 1:02:05 left" in text
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


@IN_ONE_DESIGN
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


@IN_ONE_DESIGN
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


@pytest.mark.slow
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
    for ending, most in (("js", MOST_BYTES), ("css", MOST_STYLE)):
        assert 0 < sum(file.stat().st_size for file in (ROOT / "web").rglob(f"*.{ending}")) < most
