"""A take that is played while it grows, in the film strip of a real browser: both node designs."""

from __future__ import annotations

from helios_comfy_strip import FILM, IN_ONE_DESIGN, SECONDS, VIDEO, Strip

from helios_setup.server import ComfyServer

BLOBS = True
CHUNK_SECONDS = 33 / 24
GROWING = f"() => {VIDEO}?.src.startsWith('blob:') && {VIDEO}.readyState >= 2"
BUFFERED = f"() => {VIDEO}.buffered.length ? {VIDEO}.buffered.end({VIDEO}.buffered.length - 1) : 0"
STREAMS = "() => document.querySelectorAll('video[src^=\"blob:\"]').length"
LIVE = ".helios-strip [data-action=live]"


def buffered_beyond(strip: Strip, seconds: float) -> float:
    strip.page.wait_for_function(f"least => ({BUFFERED})() > least", arg=seconds, timeout=SECONDS)
    return strip.page.evaluate(BUFFERED)


def begin(strip: Strip, chunks: int) -> None:
    """Run a film and play it from its first chunk on."""
    strip.open(FILM, num_chunks=chunks)
    assert strip.page.locator(LIVE).is_hidden()
    strip.run()
    strip.until_finished(1)
    strip.cell(0).click()
    strip.page.wait_for_function(GROWING, timeout=SECONDS)


def stop(strip: Strip, comfy: ComfyServer) -> None:
    """Its parts take the place of what grew."""
    comfy.interrupt()
    strip.until("interrupted")
    strip.page.wait_for_function(f"() => {VIDEO}?.src.includes('/video')", timeout=SECONDS)
    assert strip.page.locator(LIVE).is_hidden() and strip.page.evaluate(STREAMS) == 0


@IN_ONE_DESIGN
def test_a_growing_take_is_played_behind_its_edge(strip: Strip, comfy: ComfyServer) -> None:
    begin(strip, 400)
    before = buffered_beyond(strip, 0)
    assert buffered_beyond(strip, before) >= before + CHUNK_SECONDS - 0.05
    assert strip.page.locator(".helios-strip").get_attribute("data-status") == "running"
    # Over a chunk's border, without another file.
    strip.page.wait_for_function(f"() => {VIDEO}.currentTime > {1.2 * CHUNK_SECONDS} && ({GROWING})()", timeout=SECONDS)
    assert "× real time" in strip.text()
    # A reload in the middle: it plays again, its whole past too.
    strip.frontend.start()
    strip.until("running")
    strip.page.locator(LIVE).click()
    strip.page.wait_for_function(f"() => ({GROWING})() && {VIDEO}.currentTime >= {CHUNK_SECONDS}", timeout=SECONDS)
    strip.screenshot("growing")
    strip.page.locator(".helios-timeline-cells").press("Home")
    strip.page.wait_for_function(f"() => ({GROWING})() && {VIDEO}.currentTime < {CHUNK_SECONDS}", timeout=SECONDS)
    stop(strip, comfy)
    assert strip.frontend.errors == []


@IN_ONE_DESIGN
def test_takes_that_are_played_while_they_grow_leave_nothing_behind(strip: Strip, comfy: ComfyServer) -> None:
    counts = []
    for _ in range(3):
        begin(strip, 400)
        stop(strip, comfy)
        counts.append(strip.page.evaluate("() => ({ ...window.heliosLive })"))
    # Each opens a workflow, whose node listens; the takes themselves add nothing.
    assert counts[2]["listeners"] - counts[1]["listeners"] == counts[1]["listeners"] - counts[0]["listeners"]
    assert strip.frontend.errors == []
