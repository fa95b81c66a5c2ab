"""A film that is directed from its strip while it is made, in a real browser: both node designs."""

from __future__ import annotations

import json
import re
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import av
import pytest
from helios_comfy_strip import BANDS, FILM_SHOWN, IN_ONE_DESIGN, SECONDS, TAKE, VIDEO, Strip, page_memory, seeds
from PIL import Image

from helios_setup.server import ComfyServer

BLOBS = True
ALLOWED_MIB = 8  # core's queue and history grow too
LIVE_FILM = "Helios Distilled - Live"
GROWING = f"() => {VIDEO}?.src.startsWith('blob:') && {VIDEO}.readyState >= 2"
EDGE = f"() => {VIDEO}.buffered.length ? {VIDEO}.buffered.end({VIDEO}.buffered.length - 1) : 0"
WAITING = "() => [...document.querySelectorAll('.helios-band[data-waiting]')].map(band => band.innerText.trim())"
PICTURE = "(chunk) => document.querySelector(`.helios-cell[data-chunk='${chunk}'] img`)?.src"


def directing(strip: Strip, comfy: ComfyServer) -> dict[str, Any]:
    return comfy.get(f"/helios/takes/{strip.page.evaluate(TAKE)}/direct")


def said(strip: Strip) -> None:
    """Waits for the answer to a direction."""
    strip.page.get_by_text("Holds from chunk").wait_for(timeout=SECONDS)


def prompt(strip: Strip, text: str, chunk: int | None = None) -> None:
    strip.page.locator(".helios-direct-from").fill("" if chunk is None else str(chunk + 1))
    field = strip.page.locator(".helios-direct-field")
    field.fill(text)
    field.press("Enter")
    strip.page.wait_for_function("() => !document.querySelector('.helios-direct-field').value", timeout=SECONDS)


@IN_ONE_DESIGN
def test_a_film_is_directed_from_its_strip(strip: Strip, comfy: ComfyServer) -> None:
    strip.open(LIVE_FILM, text="a boat", max_chunks=60)
    bar = strip.page.locator(".helios-direct")
    assert bar.is_hidden()
    strip.run()
    # It plays by itself, and what is buffered grows.
    strip.page.wait_for_function(GROWING, timeout=SECONDS)
    before = strip.page.evaluate(EDGE)
    strip.page.wait_for_function(f"least => ({EDGE})() > least", arg=before, timeout=SECONDS)
    bar.wait_for()
    strip.press("pause")
    said(strip)
    strip.page.locator(".helios-strip [data-action=continue]").wait_for()
    first = directing(strip, comfy)["next_chunk"]
    prompt(strip, "a storm")
    prompt(strip, "the sun", first + 4)
    strip.page.wait_for_function(f"() => ({WAITING})().length === 2")
    assert strip.page.evaluate(BANDS) == ["a boat", "a storm", "the sun"]
    lines = strip.page.locator(".helios-direct-waiting > div").all_inner_texts()
    assert [line.split(",")[0] for line in lines] == [f"Chunk {first + 1}", f"Chunk {first + 5}"]
    strip.screenshot("directed")
    strip.press("undo")
    strip.page.wait_for_function(f"() => ({WAITING})().join() === 'a storm'")
    # A reload keeps all of it.
    strip.frontend.start()
    bar.wait_for(timeout=SECONDS)
    strip.page.wait_for_function(f"() => ({WAITING})().join() === 'a storm'", timeout=SECONDS)
    strip.press("continue")
    strip.until_finished(first + 2)
    assert strip.page.evaluate(WAITING) == []
    rows = directing(strip, comfy)["rows"]
    assert [(row["chunk"], row["text"]) for row in rows] == [(0, "a boat"), (first, "a storm")]

    strip.until_pictures(2)
    picture = strip.page.evaluate(PICTURE, 1)
    # Where it plays would be chosen again and again.
    strip.page.locator(".helios-player [data-action=play]").click()
    for key in ("Home", "ArrowRight"):
        strip.page.locator(".helios-timeline-cells").press(key)
    strip.page.wait_for_selector(".helios-cell[data-chunk='1'][aria-selected=true]")
    strip.press("redo")
    strip.cell(1).locator(".helios-cell-seed").wait_for(timeout=SECONDS)
    strip.page.wait_for_function(
        f"old => ![null, undefined, old].includes(({PICTURE})(1))", arg=picture, timeout=SECONDS
    )
    assert directing(strip, comfy)["seed_changes"].startswith("1: ")
    strip.page.wait_for_function(GROWING, timeout=SECONDS)
    strip.press("stop")
    strip.until("finished")
    strip.page.wait_for_function(FILM_SHOWN, timeout=SECONDS)
    assert bar.is_hidden()
    assert re.search(r"(\d+) of \1 chunks, finished", strip.text()), "it is as long as it became"
    assert not any(cell["stale"] for cell in strip.cells())
    strip.screenshot("directed-finished")
    assert strip.frontend.errors == []


DROP = """([bytes, name]) => {
    const data = new DataTransfer()
    data.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' }))
    const bar = document.querySelector('.helios-direct')
    bar.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))
}"""


def red_picture() -> bytes:
    held = BytesIO()
    Image.new("RGB", (96, 64), (200, 30, 30)).save(held, "PNG")
    return held.getvalue()


@IN_ONE_DESIGN
def test_a_picture_chosen_or_dropped_becomes_the_anchor(strip: Strip, comfy: ComfyServer) -> None:
    strip.open(LIVE_FILM, text="a boat", max_chunks=60)
    strip.run()
    strip.page.locator(".helios-direct").wait_for(timeout=SECONDS)
    strip.press("pause")
    said(strip)
    name = f"red {next(seeds)}.png"
    with strip.page.expect_file_chooser() as chooser:
        strip.press("anchor")
    chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": red_picture()})
    waiting = strip.page.locator(".helios-direct-waiting > div")
    waiting.wait_for(timeout=SECONDS)
    state = directing(strip, comfy)
    assert [(one["do"], one["chunk"]) for one in state["pending"]] == [("anchor", state["next_chunk"])]
    assert "another anchor" in waiting.inner_text()
    strip.screenshot("anchored")
    # Of what is no picture nothing changes, and its director is told; the page does not open it as a workflow.
    strip.page.evaluate(DROP, [list(b"no picture"), "note.png"])
    strip.page.get_by_text("is no picture").wait_for(timeout=SECONDS)
    strip.press("undo")
    strip.page.wait_for_function("() => !document.querySelector('.helios-direct-waiting > div')", timeout=SECONDS)
    strip.page.evaluate(DROP, [list(red_picture()), name])
    waiting.wait_for(timeout=SECONDS)
    chunk = directing(strip, comfy)["next_chunk"]
    strip.press("continue")
    strip.until_finished(chunk + 1)
    strip.press("stop")
    strip.until("finished")
    strip.page.wait_for_function(FILM_SHOWN, timeout=SECONDS)
    address = urlsplit(strip.page.evaluate(f"() => {VIDEO}.src"))
    with av.open(BytesIO(comfy.content(f"{address.path.removeprefix('/api')}?{address.query}"))) as file:
        directed = json.loads(file.metadata["helios_directed"])
    assert directed["anchors"] == {str(chunk): name}
    refusal, *others = strip.frontend.errors
    assert "400 (Bad Request)" in refusal and not others
    strip.frontend.errors.clear()


@pytest.mark.slow
def test_ten_live_takes_leave_nothing_behind(strip: Strip) -> None:
    strip.open(LIVE_FILM, text="a boat", max_chunks=0)
    counts, sizes = [], []
    for take in range(10):
        strip.set(seed=next(seeds), filename_prefix=f"live{take}")
        strip.run()
        strip.page.wait_for_function(GROWING, timeout=SECONDS)
        strip.press("pause")  # a prompt of a film that goes on is used before it can be undone
        prompt(strip, "a storm")
        if take % 2:
            strip.press("undo")
        strip.press("stop")
        strip.until("finished")
        strip.page.wait_for_function(FILM_SHOWN, timeout=SECONDS)
        counts.append(strip.page.evaluate("() => ({ ...window.heliosLive })"))
        sizes.append(page_memory(strip.page))
    assert counts[-1] == counts[1], "listeners, timers and observers of ours"
    # One of what an earlier test opened may still be held.
    assert all(sizes[-1][kind] <= max(1, sizes[1][kind]) for kind in ("MediaSource", "SourceBuffer"))
    assert sizes[-1]["heap"] - sizes[1]["heap"] < ALLOWED_MIB
    assert strip.frontend.errors == []
