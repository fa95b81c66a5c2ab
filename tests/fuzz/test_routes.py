"""Every HTTP route of ours: traversal, ranges, methods, foreign origins, ids of other takes."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
from helios_comfy_graphs import film
from helios_fuzz_oracles import HANG_SECONDS, check_sentence, count, tree
from helios_fuzz_profiles import tries
from hypothesis import given
from hypothesis import strategies as st

from helios_setup.server import LOOPBACK

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X")
PARTS = ("thumbnail", "video", "Video", "video.mp4", "latents", "", ".", "..", "video/", "video%00", "video;x", "*")
CHUNKS = ("0", "1", "2", "-1", "00", "999999999", "9" * 40, "9" * 5000, "0x0", "1.0", "1e0", "", "%30", "٠", "+1", "..",
          "0/../1", "0%2f..%2f1", "%00", " 0", "null")  # fmt: skip
TARGETS = (
    "/helios/takes", "/helios/takes/", "//helios/takes", "/helios//takes", "/helios/../helios/takes", "/helios/",
    "/helios/takes/../../prompt", "/helios/takes/%2e%2e/%2e%2e/etc/passwd", "/helios/takes?x=" + "y" * 4000,
    "/helios/takes/..%5c..%5cetc/0/video", "/HELIOS/takes", "/helios/takes/%00/0/video", "/helios/takes#x",
    "/extensions/Helios/../../../../etc/passwd", "/helios/takes/" + "a" * 7000 + "/0/video",
    "http://elsewhere/helios/takes", "/helios/takes/*/0/video", "*", "", "/helios/takes/%ff/%fe/video",
)  # fmt: skip
ORIGINS = ("http://elsewhere.example", "null", "https://127.0.0.1.elsewhere.example", "file://", "http://[::1]", "")
RANGES = (
    "bytes=0-", "bytes=0-0", "bytes=1-4", "bytes=-5", "bytes=-0", "bytes=5-1", "bytes=-999999999", "bytes=99999999-",
    "bytes=0-99999999", "bytes=", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "bits=0-1", "bytes 0-1", "bytes=0--1",
    "bytes=--1", f"bytes=0-{'9' * 400}", f"bytes={'9' * 5000}-", "bytes=" + "0-1," * 1000, "bytes=٠-١", "bytes= 0-1",
    "Bytes=0-1",
)  # fmt: skip
# The addresses that a route of ours answers.
OWN = re.compile(r"/helios/(?:takes|library|models|takes/[^/]+(?:/direct|/queued|/stream\.m3u8|/[^/]+/[^/]+)?)")
# What a server may say; 5xx is none of it.
ALLOWED = {200, 204, 206, 301, 302, 304, 307, 308, 400, 403, 404, 405, 411, 412, 414, 416, 417, 431, 501, 505}


class Takes(NamedTuple):
    """How many chunks each take has, by id; and what every address gives."""

    ids: dict[str, int]
    content: dict[str, bytes]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.ids})"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def ask(server, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> Answer:
    """A request as it stands: nothing is normalised on the way, as a client library would."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    defaults = {"Host": f"{LOOPBACK}:{server.port}", "Connection": "close", "Content-Length": str(len(body))}
    lines += [f"{name}: {value}" for name, value in defaults.items() if name not in headers]
    with socket.create_connection((LOOPBACK, server.port), timeout=HANG_SECONDS) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body)
        data = b""
        while part := connection.recv(65536):
            data += part
    head, _, content = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    fields = dict(line.split(": ", 1) for line in rest if ": " in line)
    return Answer(int(first.split()[1]), {name.lower(): value for name, value in fields.items()}, content)


@pytest.fixture(scope="module")
def takes(abused):
    """Two takes of this process, of two chunks and of one, with what the routes give for them."""
    for prefix, chunks in (("routes", 2), ("other", 1)):
        abused.run(film(prefix, chunks=chunks), timeout=120)
    found = [take for take in abused.get("/helios/takes")["takes"] if take["name"].startswith(("routes", "other"))]
    assert sorted(len(take["chunks"]) for take in found) == [1, 2]
    content = {}
    for take in found:
        for chunk in range(len(take["chunks"])):
            for part in ("thumbnail", "video"):
                target = f"/helios/takes/{take['id']}/{chunk}/{part}"
                content[target] = ask(abused, "GET", target, {}).body
    assert all(content.values())
    return Takes({take["id"]: len(take["chunks"]) for take in found}, content)


def state(server) -> tuple:
    takes = [take for take in server.get("/helios/takes")["takes"] if take["name"].startswith(("routes", "other"))]
    # Without times: reading a stored chunk marks it as used.
    files = tree(server.log_file.parent / "output")
    return json.dumps(takes, sort_keys=True), {name: size for name, (size, _) in files.items()}


def check(answer: Answer, target: str, known: dict[str, bytes]) -> None:
    """No failure of the server, no file of the machine, no other site's permission, one sentence where it refuses."""
    count(f"HTTP {answer.status}")
    assert answer.status in ALLOWED, f"{answer.status} {answer.body[:300]!r}"
    assert b"Traceback" not in answer.body and b"root:x:" not in answer.body
    assert answer.headers.get("access-control-allow-origin", "") == ""
    kind = answer.headers.get("content-type", "")
    if answer.status in (200, 206) and kind.startswith(("video/", "image/webp")):
        assert target in known, f"{target!r} gave {len(answer.body)} bytes"
    if answer.status == 400 and answer.body and kind.startswith("application/json"):
        check_sentence(json.loads(answer.body)["error"])


@tries(80)
@given(draw=st.data())
def test_addresses(abused, takes, draw):
    """Any take, chunk and part, of another take or of none, by any method and from anywhere."""
    ids, content = takes
    foreign = st.sampled_from(["0" * 32, "f" * 32, "..", "A" * 32, "", "%"])
    drawn = st.text("0123456789abcdef", min_size=31, max_size=33)
    identifiers = st.one_of(st.sampled_from(sorted(ids)), foreign, drawn)
    built = st.tuples(identifiers, st.sampled_from(CHUNKS), st.sampled_from(PARTS)).map(
        lambda parts: "/helios/takes/{}/{}/{}".format(*parts)
    )
    target = draw.draw(st.one_of(built, built, built, st.sampled_from(TARGETS), st.sampled_from(sorted(content))))
    target = target.replace(" ", "%20")
    method = draw.draw(st.one_of(st.just("GET"), st.sampled_from(METHODS)))
    headers = {}
    if draw.draw(st.booleans()):
        headers["Origin"] = draw.draw(st.sampled_from(ORIGINS))
    if draw.draw(st.integers(0, 3)) == 0:
        headers["Sec-Fetch-Site"] = "cross-site"
    body = draw.draw(st.sampled_from([b"", b"{}", b"\0" * 5000]))
    before = state(abused)
    answer = ask(abused, method, target, headers, body)
    if answer.status == 500:
        # Where no route is, core looks for a file of that name, and fails on a name that is too long for one.
        assert target.startswith("/helios/") and not OWN.fullmatch(target.split("?")[0])
        elsewhere = ask(abused, method, target.replace("/helios/", "/elsewhere/", 1), headers, body)
        assert elsewhere == replace(answer, headers=elsewhere.headers)
    else:
        check(answer, target, content)
    if answer.status == 200 and method == "GET" and target in content:
        assert answer.body == content[target]
    if "cross-site" in headers.values():
        assert answer.status in (400, 403)
    assert state(abused) == before, "a request changed something"


@tries(80)
@given(draw=st.data())
def test_ranges(abused, takes, draw):
    """A part of the bytes is that part, as RFC 9110 cuts it; nonsense is refused or gives all."""
    content = takes.content
    target = draw.draw(st.sampled_from(sorted(content)))
    whole = content[target]
    edges = st.one_of(st.integers(0, 40), st.integers(len(whole) - 20, len(whole) + 20))
    spans = st.tuples(edges, edges).map(lambda pair: "bytes={}-{}".format(*pair))
    wanted = draw.draw(st.one_of(st.sampled_from(RANGES), spans, edges.map(lambda n: f"bytes=-{n}")))
    answer = ask(abused, "GET", target, {"Range": wanted})
    check(answer, target, content)
    cut = re.fullmatch(r"(?i:bytes)=([0-9]*)-([0-9]*)", wanted)
    if cut is None or not any(cut.groups()):
        assert answer.status in (400, 416) or (answer.status, answer.body) == (200, whole)
        return
    first, last = span(*cut.groups(), len(whole))
    if answer.status == 206:
        assert answer.body == whole[first : last + 1] and first <= last
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(whole)}"
    elif first > last:
        assert answer.status in (400, 416) or (answer.status, answer.body) == (200, whole)
    else:
        # Numbers of more digits than Python reads may be refused.
        assert len(wanted) > 400 and answer.status in (400, 416)


def span(first: str, last: str, size: int) -> tuple[int, int]:
    """First and last byte; first > last where there is nothing to send."""
    far = 10**18
    start, end = (min(int(text[:18] or 0) if len(text) <= 18 else far, far) for text in (first, last))
    if not first:
        return (max(0, size - end), size - 1) if end else (1, 0)
    if start >= size or (last and end < start):
        return 1, 0
    return start, min(end, size - 1) if last else size - 1


@pytest.mark.parametrize("method", METHODS)
def test_methods(abused, takes, method):
    """Only GET and HEAD reach a route; nothing changes."""
    before = state(abused)
    for target in ("/helios/takes", sorted(takes.content)[0]):
        answer = ask(abused, method, target, {}, b"{}")
        check(answer, target, takes.content)
        if method not in ("GET", "HEAD", "OPTIONS"):
            assert answer.status in (400, 404, 405), answer.status
    assert state(abused) == before
