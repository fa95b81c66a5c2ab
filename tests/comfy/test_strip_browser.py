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
MOST_BYTES = 60_000
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
}"""
WIDGET = """(name) => app.graph.nodes.flatMap(node => node.widgets ?? []).find(widget => widget.name === name).value"""
CELLS = """() => [...document.querySelectorAll('.helios-strip-cell')].map(cell => ({
  chunk: Number(cell.dataset.chunk), state: cell.dataset.state,
  reused: !cell.querySelector('.helios-strip-reused').hidden,
  drift: !cell.querySelector('.helios-strip-drift').hidden,
  row: cell.querySelector('.helios-strip-row').title,
  picture: cell.querySelector('img')?.naturalWidth ?? 0,
}))"""
RECORD = """() => {
  window.heliosFinished = []
  new MutationObserver(changes => {
    for (const { target: { dataset } } of changes)
      if (dataset.state === 'finished') window.heliosFinished.push(Number(dataset.chunk))
  }).observe(document.querySelector('.helios-strip'), { subtree: true, attributeFilter: ['data-state'] })
}"""
TAKE = "() => document.querySelector('.helios-strip')?.dataset.take ?? null"
PLAYING = "() => (document.querySelector('.helios-strip video')?.readyState ?? 0) >= 2"
FILM_SHOWN = "() => [...document.querySelectorAll('video')].some(({ src }) => src.includes('/view?'))"
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
        count = "document.querySelectorAll('.helios-strip-cell[data-state=finished]').length"
        self.page.wait_for_function(f"() => {count} >= {chunks}", timeout=SECONDS)

    def until_pictures(self, chunks: int) -> None:
        count = "[...document.querySelectorAll('.helios-strip-cell img')].filter(image => image.naturalWidth).length"
        self.page.wait_for_function(f"() => {count} >= {chunks}", timeout=SECONDS)

    def cells(self) -> list[dict[str, Any]]:
        return self.page.evaluate(CELLS)

    def cell(self, chunk: int) -> Any:
        return self.page.locator(f".helios-strip-cell[data-chunk='{chunk}']")

    def play(self, chunk: int) -> float:
        """Click a finished chunk; the seconds of the part that plays."""
        self.cell(chunk).locator(".helios-strip-play").click()
        self.page.wait_for_function(PLAYING, timeout=SECONDS)
        return self.page.evaluate("() => document.querySelector('.helios-strip video').duration")

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


def test_strip_fills_chunk_by_chunk_and_plays(strip: Strip) -> None:
    strip.open(FILM, num_chunks=4, width=128)
    assert strip.page.evaluate(TAKE) is None and "every chunk shows here" in strip.text()
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
    assert all(cell["row"].startswith("A small red sailing boat") for cell in cells)
    assert strip.page.evaluate("() => window.heliosFinished") == [0, 1, 2, 3]
    assert f"{4 * CHUNK_SECONDS:.1f} s of film" in strip.text() and "4 of 4 chunks, finished" in strip.text()
    assert strip.play(1) == pytest.approx(CHUNK_SECONDS, abs=0.05)
    strip.page.wait_for_function(FILM_SHOWN, timeout=SECONDS)
    strip.screenshot("playing")
    strip.check_page()


def test_render_again_from_here_samples_only_what_follows(strip: Strip) -> None:
    strip.open(FILM, num_chunks=4)
    strip.run()
    strip.until("finished")
    # As if the seed were set to change after every queue.
    seed = strip.page.evaluate(WIDGET, "seed")
    strip.set(seed=seed + 1)
    strip.cell(2).hover()
    strip.run(strip.cell(2).locator(".helios-strip-redo").click)
    strip.until("finished")
    assert [cell["reused"] for cell in strip.cells()] == [True, True, False, False]
    assert strip.page.evaluate(WIDGET, "seed") == seed
    changes = strip.page.evaluate(WIDGET, "seed_changes")
    assert changes.startswith("2: ")
    # Once more, and from an earlier chunk too: the text keeps the later change.
    strip.play(1)
    strip.run(strip.page.get_by_text("Render again from here").click)
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
    cells = strip.cells()
    assert len(cells) == 44 and all(cell["state"] == "finished" for cell in cells[:3])
    strip.until_finished(sum(cell["state"] == "finished" for cell in cells) + 1)
    strip.screenshot("restored")
    comfy.interrupt()
    strip.until("interrupted")
    assert "stopped" in strip.text()
    finished = [cell["chunk"] for cell in strip.cells() if cell["state"] == "finished"]
    assert finished == list(range(len(finished))) and len(finished) < 44
    for chunk in (0, finished[-1]):
        assert strip.play(chunk) == pytest.approx(CHUNK_SECONDS, abs=0.05)
    strip.page.locator(".helios-strip [data-action=close]").click()
    assert strip.page.locator(".helios-strip video").count() == 0
    assert strip.frontend.errors == []


def test_chunk_chain_shows_moving_pictures(strip: Strip) -> None:
    strip.open(CLIP, num_chunks=2)
    strip.run()
    strip.until("finished")
    strip.until_pictures(2)
    strip.cell(1).locator(".helios-strip-play").click()
    strip.page.wait_for_function("() => document.querySelector('.helios-strip-player img')?.naturalWidth === 160")
    strip.screenshot("chain")
    strip.page.wait_for_function(FILM_SHOWN, timeout=SECONDS)
    strip.check_page()


def test_strip_stays_out_of_saved_and_queued_workflows(strip: Strip) -> None:
    workflow = json.loads((ROOT / "workflows" / f"{FILM}.json").read_text(encoding="utf-8"))
    strip.frontend.load_template(workflow, FILM)
    (node,) = [node for node in strip.frontend.serialized()["nodes"] if node["type"] == "HeliosRenderVideo"]
    (saved,) = [node for node in workflow["nodes"] if node["type"] == "HeliosRenderVideo"]
    length = len(saved["widgets_values"])
    assert node["widgets_values"][:length] == saved["widgets_values"]
    assert node["widgets_values"][length:] in ([], [""])  # seed_changes
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


IN_WINDOW = """(index) => {
  const cell = document.querySelectorAll('.helios-strip-cell')[index].getBoundingClientRect()
  const window = document.querySelector('.helios-strip-cells').getBoundingClientRect()
  return window.top - 1 <= cell.top && cell.bottom <= window.bottom + 1
}"""


def test_every_state_of_a_long_film_is_drawn(strip: Strip) -> None:
    """States that last a moment on helios-tiny, in a film of 44 chunks whose prompt changes."""
    strip.open(FILM)
    strip.page.mouse.move(800, 860)  # under the pointer the strip does not scroll by itself
    (node,) = [node["id"] for node in strip.frontend.serialized()["nodes"] if node["type"] == "HeliosRenderVideo"]
    take = {
        "id": "a" * 32, "node": str(node), "prompt_id": "p", "workflow": strip.frontend.serialized()["id"], "name": "",
        "first_chunk": 0, "num_chunks": 44, "chunk_frames": 33, "film_fps": 24, "width": 640, "height": 384, "seed": 1,
        "seed_changes": [], "rows": [[0, "a calm sea"], [7, "a storm"]], "status": "running", "message": "",
        "progress": {"film_seconds": 0, "fps": 0, "seconds_left": None},
        "chunks": [
            {"chunk": chunk, "state": "finished", "reused": chunk < 5, "thumbnail": False, "video": False,
             "anti_drift": chunk in (3, 9)}
            for chunk in range(20)
        ],
    }  # fmt: skip
    strip.page.evaluate(BEGIN, take)
    sampling = {"chunk": 20, "state": "sampling", "stage": 1, "step": 3, "total": 6, "reused": False}
    progress = {"film_seconds": 27.5, "fps": 12.34, "seconds_left": 3725}
    strip.page.evaluate(CHANGE, [take["id"], sampling, progress])
    strip.page.evaluate(CHANGE, [take["id"], {"chunk": 21, "state": "decoding", "reused": True}, progress])
    strip.page.wait_for_selector(".helios-strip-cell[data-state=decoding]")
    assert [cell["state"] for cell in strip.cells()] == [
        *["finished"] * 20, "sampling", "decoding", *["waiting"] * 22
    ]  # fmt: skip
    assert [cell["reused"] for cell in strip.cells()] == [chunk < 5 or chunk == 21 for chunk in range(44)]
    assert [cell["chunk"] for cell in strip.cells() if cell["drift"]] == [3, 9]
    assert [cell["row"] for cell in strip.cells()] == ["a calm sea"] * 7 + ["a storm"] * 37
    assert strip.cell(20).locator(".helios-strip-note").text_content() == "stage 1\nstep 3/6"
    text = strip.text()
    assert "20 of 44 chunks, rendering" in text and "27.5 s of film · 12.3 fps · 1:02:05 left" in text
    strip.screenshot("44-chunks")
    # The chunk at work is scrolled into the strip's window.
    strip.page.wait_for_function(IN_WINDOW, arg=20)
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
    strip.cell(0).locator(".helios-strip-play").click()
    strip.page.get_by_text("no longer in the store").wait_for()
    strip.set(seed_changes="seven")
    strip.page.get_by_text("Render again from here").click()
    strip.page.get_by_text("seed_changes cannot be read").wait_for()
    strip.screenshot("gone")
    assert strip.page.evaluate(WIDGET, "seed_changes") == "seven"
    # After a reload the picture is asked for again, and is gone.
    strip.frontend.start()
    strip.until("finished")
    assert strip.frontend.errors == []


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
