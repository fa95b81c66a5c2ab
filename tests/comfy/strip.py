"""The film strip of a workflow that is open in a real browser, for the tests that drive it."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helios_setup.paths import ROOT

FILM, CLIP = "Helios Distilled - Long Video", "Helios Distilled - Text to Video"
TINY = "helios-tiny-distilled"
SECONDS = 120_000
seeds = itertools.count(50_000)
# Long tests of what does not depend on how nodes are drawn: in the other design with --run-slow.
IN_ONE_DESIGN = pytest.mark.parametrize(
    "strip", ["new-design", pytest.param("classic", marks=pytest.mark.slow)], indirect=True
)

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
TAKE = "() => document.querySelector('.helios-strip')?.dataset.take ?? null"
VIDEO = "document.querySelector('.helios-player-video:not([hidden])')"
PLAYING = f"() => ({VIDEO}?.readyState ?? 0) >= 2"
FILM_SHOWN = f"() => {VIDEO}?.src.includes('/view?') && {VIDEO}.readyState >= 2"
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


def page_memory(page: Any) -> dict[str, float]:
    """A page without its garbage: MiB of its script's objects; how many elements, listeners and media there are."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    counts: dict[str, float] = {kind: _living(session, kind) for kind in ("MediaSource", "SourceBuffer")}  # collects
    metrics = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
    session.detach()
    names = {"Nodes": "elements", "JSEventListeners": "listeners"}
    counts |= {shown: metrics[name] for name, shown in names.items()}
    return counts | {"heap": metrics["JSHeapUsedSize"] / 2**20}


def _living(session: Any, kind: str) -> int:
    """How many objects of a class the page still holds."""
    prototype = session.send("Runtime.evaluate", {"expression": f"{kind}.prototype"})["result"]["objectId"]
    found = session.send("Runtime.queryObjects", {"prototypeObjectId": prototype})["objects"]["objectId"]
    length = {"objectId": found, "functionDeclaration": "function () { return this.length }", "returnByValue": True}
    count = session.send("Runtime.callFunctionOn", length)["result"]["value"]
    session.send("Runtime.releaseObject", {"objectId": found})
    return count


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
