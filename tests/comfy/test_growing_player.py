"""The film strip's player of a film that grows, on a page of its own: made parts in place of a sampled take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from helios_comfy_strip import page_memory
from helios_tools.frontend import FLAGS

from helios_core.video.segments import VideoSettings, encode_segment
from helios_core.video.stream import playlist, stream_header, stream_part
from helios_setup.paths import ROOT

CHUNK = Fraction(33, 24)
SECONDS = float(CHUNK)
FULL_CHUNKS = 30  # more than a page holds behind the second that plays
ALLOWED_MIB = 1
TYPES = {"js": "text/javascript", "css": "text/css", "json": "application/json"}
# Core's, with --disable-api-nodes; and none.
POLICIES = {"forbidden": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'", "allowed": ""}
PAGE = """<!doctype html><body><script type=module>
import { FilmStrip } from '/lib/strip.js'
const host = { address: (take, chunk) => `/${chunk}.mp4`, filmAddress: () => '', streamAddress: () => '/stream.m3u8' }
window.strip = new FilmStrip({ ...host, exists: async () => true, resume: async () => '' })
document.body.append(strip.root)
window.take = { id: 'a', first_chunk: 0, num_chunks: 400, chunk_frames: 33, film_fps: 24, width: 64, height: 64,
  rows: [], seed: 1, seed_changes: [], status: 'running', live: true, message: '', progress: {}, film: null, chunks: []
}
window.has = (count) => {
  const chunk = { state: 'finished', thumbnail: true, video: true }
  take.chunks = Array.from({ length: count }, (_, index) => ({ ...chunk, chunk: index }))
  strip.show(take)
}
window.video = () => document.querySelector('video:not([hidden])')
window.held = (second) => {
  const { buffered, readyState } = video() ?? { buffered: [], readyState: 0 }
  const within = (index) => buffered.start(index) <= second && second < buffered.end(index)
  return readyState >= 2 && Array.from({ length: buffered.length }, (_, index) => index).some(within)
}
</script>"""


class Film(ThreadingHTTPServer):
    """Serves the page and `keys`, one name a chunk: the first letter names its picture."""

    def __init__(self, policy: str) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.policy, self.keys, self.asked = policy, ["a"], []
        self.silent = 0  # parts that are not answered
        self.url = f"http://127.0.0.1:{self.server_port}"
        pictures = {"a": 40, "b": 200}
        frames = {name: torch.full((33, 64, 64, 3), level, dtype=torch.uint8) for name, level in pictures.items()}
        self.segments = {name: encode_segment(shown, VideoSettings(64, 64)) for name, shown in frames.items()}

    def content(self, path: str) -> tuple[bytes, str]:
        name, _, ending = path.removeprefix("/").rpartition(".")
        if ending in TYPES:
            return (ROOT / "web" / path.removeprefix("/")).read_bytes(), TYPES[ending]
        if ending == "m3u8":
            names = [f"{number}-{key}.m4s" for number, key in enumerate(self.keys)]
            return playlist("head.mp4", names, CHUNK, False).encode(), "application/vnd.apple.mpegurl"
        if name == "head":
            return stream_header(self.segments["a"])
        if ending == "m4s":
            number, key = name.split("-")
            return stream_part(self.segments[key[0]], int(number), CHUNK), "video/iso.segment"
        if ending == "mp4":
            return self.segments[self.keys[int(name)][0]], "video/mp4"
        return PAGE.encode(), "text/html"


class Answer(BaseHTTPRequestHandler):
    server: Film

    def do_GET(self) -> None:
        data, kind = self.server.content(self.path)
        self.server.asked.append(self.path)
        refuses = self.server.silent > 0 and kind == "video/iso.segment"
        self.server.silent -= refuses
        self.send_response(503 if refuses else 200)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", self.server.policy)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def film(request: pytest.FixtureRequest, browser: Any) -> Iterator[tuple[Film, Any]]:
    server = Film(POLICIES[getattr(request, "param", "allowed")])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_function("() => window.has")
    yield server, page
    page.close()
    server.shutdown()
    server.server_close()


def grow(film: tuple[Film, Any], keys: list[str]) -> None:
    film[0].keys = keys
    film[1].evaluate("count => has(count)", len(keys))


def wait(page: Any, condition: str, value: Any = None) -> None:
    page.wait_for_function(f"(value) => {condition}", arg=value, timeout=60_000)


def test_it_plays_over_borders_and_takes_a_chunk_that_is_made_again(film: tuple[Film, Any]) -> None:
    server, page = film
    grow(film, ["a"])
    wait(page, "held(0) && video().src.startsWith('blob:') && !video().paused")
    grow(film, ["a", "a1", "a2"])
    wait(page, "held(value) && video().currentTime > value", 2 * SECONDS + 0.1)
    page.evaluate("() => strip.player.seek(0.2, false)")
    # Chunk 1 and what follows are made again: none of the old pictures stays.
    grow(film, ["a", "b1"])
    wait(page, "!held(value)", 2.5 * SECONDS)
    wait(page, "held(value)", 1.5 * SECONDS)
    page.evaluate("second => strip.player.seek(second, false)", 1.5 * SECONDS)
    wait(page, "!video().seeking && video().readyState >= 2")
    level = """() => {
      const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d')
      canvas.drawImage(video(), 0, 0, 1, 1)
      return canvas.getImageData(0, 0, 1, 1).data[0]
    }"""
    assert page.evaluate(level) > 150
    # So is the first one, and for a while the film has no part at all.
    grow(film, [])
    grow(film, ["b"])
    wait(page, "!held(value)", 1.5 * SECONDS)
    page.evaluate("() => strip.player.seek(0.2, false)")
    wait(page, "!video().seeking && held(0.2)")
    assert page.evaluate(level) > 150
    assert server.asked.count("/0-a.m4s") == 1, "what stays is not asked for again"


def test_a_server_that_does_not_answer_for_a_moment_is_asked_again(film: tuple[Film, Any]) -> None:
    server, page = film
    grow(film, ["a"])
    wait(page, "held(0)")
    server.silent = 2
    grow(film, ["a", "a1"])
    wait(page, "held(value) && video().src.startsWith('blob:')", 1.5 * SECONDS)
    assert server.silent == 0


def test_a_long_film_is_held_for_a_minute_and_played_anywhere(film: tuple[Film, Any]) -> None:
    _, page = film
    grow(film, [f"a{number}" for number in range(400)])
    for second in (0, 300, 30, 545):
        page.evaluate("second => strip.player.seek(second, true)", second)
        wait(page, "held(value) && video().currentTime > value + 0.1", second)
        assert (
            page.evaluate("() => video().buffered.length && video().buffered.end(0) - video().buffered.start(0)") < 95
        )


@pytest.mark.parametrize("chunks", [48, pytest.param(200, marks=pytest.mark.slow)])
def test_the_page_stays_as_large_while_a_film_grows(film: tuple[Film, Any], chunks: int) -> None:
    """One chunk after the other, played behind the edge."""
    _, page = film
    sizes = []
    for count in range(1, chunks + 1):
        grow(film, [f"a{number}" for number in range(count)])
        page.evaluate("second => strip.player.seek(second, true)", (count - 0.5) * SECONDS)
        wait(page, "held(value)", (count - 0.4) * SECONDS)
        if count in (FULL_CHUNKS, chunks):
            sizes.append(page_memory(page))
    begun, last = sizes
    assert last["MediaSource"] == last["SourceBuffer"] == 1
    assert last["heap"] - begun["heap"] < ALLOWED_MIB
    assert page.evaluate("() => video().buffered.end(0) - video().buffered.start(0)") < 95


@pytest.mark.parametrize("film", ["forbidden"], indirect=True)
def test_where_the_server_forbids_it_chunks_play_one_after_the_other(film: tuple[Film, Any]) -> None:
    server, page = film
    grow(film, ["a"])
    wait(page, "video()?.src.endsWith('/0.mp4') && video().ended")
    grow(film, ["a", "b"])
    wait(page, "video().src.endsWith('/1.mp4') && video().currentTime > 0")
    assert not [path for path in server.asked if path.endswith(".m4s")]
