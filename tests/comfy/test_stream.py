"""A take as a live stream over HTTP, played by FFmpeg while it grows and after it has ended."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from fractions import Fraction

import av
import numpy as np
import pytest
from helios_comfy_graphs import film, node

from helios_setup.server import OPENER, failure

FRAMES, CHUNKS = 33, 5


def get(comfy, path, body=None, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with OPENER.open(urllib.request.Request(comfy.url + path, body, names), timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def first_finished(comfy, prompt_id):
    """The id of a prompt's take, once its first chunk is there."""
    started = comfy.wait_for_event(
        lambda e: e.type == "helios.take" and e.data["kind"] == "start" and e.data["take"]["prompt_id"] == prompt_id
    ).data["id"]
    comfy.wait_for_event(
        lambda e: e.type == "helios.take" and e.data["id"] == started and e.data["kind"] == "chunk"
        and e.data["chunk"]["state"] == "finished"
    )  # fmt: skip
    return started


def take_of(comfy, take):
    return json.loads(get(comfy, f"/helios/takes/{take}")[2])["take"]


def listed(comfy, take):
    """The playlist's addresses, below the take, and its other lines."""
    lines = get(comfy, f"/helios/takes/{take}/stream.m3u8")[2].decode().split("\n")
    return [line for line in lines if line.endswith(".m4s")], lines


def played(source, **options):
    """(time, picture) of every frame, as FFmpeg shows it."""
    with av.open(source, options=options) as container:
        for frame in container.decode(video=0):
            yield frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")


def equal(shown, file):
    times, pictures = zip(*shown, strict=True)
    wanted_times, wanted = zip(*played(str(file)), strict=True)
    assert times == wanted_times == tuple(Fraction(index, 24) for index in range(len(wanted)))
    assert all(np.array_equal(one, other) for one, other in zip(pictures, wanted, strict=True))


@pytest.fixture(scope="module")
def grown(comfy):
    """A take's id and finished file, and what FFmpeg played of it from the moment its first chunk was there."""
    prompt_id = comfy.queue(film("streamed", CHUNKS, seed=301))
    take = first_finished(comfy, prompt_id)
    shown, player = [], played(f"{comfy.url}/helios/takes/{take}/stream.m3u8", live_start_index="0")
    shown.append(next(player))
    began = take_of(comfy, take)["status"], listed(comfy, take)
    shown.extend(player)
    assert failure(comfy.wait(prompt_id)) is None
    address = take_of(comfy, take)["film"]
    return take, comfy.log_file.parent / "output" / address["subfolder"] / address["filename"], shown, began


def test_a_growing_take_plays_to_its_end_and_equals_its_file(comfy, grown):
    take, file, shown, (status, (parts, lines)) = grown
    assert (status, len(parts) < CHUNKS, "#EXT-X-ENDLIST" in lines) == ("running", True, False)
    assert len(shown) == CHUNKS * FRAMES
    equal(shown, file)
    # What a player has read stays: parts are added alone.
    assert listed(comfy, take)[0][: len(parts)] == parts


def test_a_finished_take_plays(comfy, grown):
    take, file, *_ = grown
    parts, lines = listed(comfy, take)
    assert len(parts) == CHUNKS and lines[-2:] == ["#EXT-X-ENDLIST", ""]
    equal(played(f"{comfy.url}/helios/takes/{take}/stream.m3u8"), file)


def test_a_stopped_take_ends_and_another_seed_has_another_address(comfy, grown):
    prompt_id = comfy.queue(film("streamed", 400, seed=301, seed_changes="1: 9"))
    take = first_finished(comfy, prompt_id)
    comfy.interrupt()
    comfy.wait(prompt_id)
    parts, lines = listed(comfy, take)
    assert lines[-2] == "#EXT-X-ENDLIST"
    assert len(list(played(f"{comfy.url}/helios/takes/{take}/stream.m3u8"))) == len(parts) * FRAMES
    before = listed(comfy, grown[0])[0]
    assert parts[0] == before[0] and not set(parts[1:]) & set(before)


def direct(comfy, take, do, **fields):
    body = json.dumps({"version": 1, "do": do, **fields}).encode()
    status, _, answered = get(comfy, f"/helios/takes/{take}/direct", body, Content_Type="application/json")
    assert status == 200, answered


def listed_as(comfy, take, wanted):
    """The addresses that a take lists once ``wanted`` holds of them."""
    for _ in range(2400):
        parts = listed(comfy, take)[0]
        if wanted(parts):
            return parts
        time.sleep(0.05)
    raise AssertionError(parts)


def test_a_chunk_that_is_rolled_again_is_another_part(comfy):
    graph = film("rolled stream", seed=303)
    inputs = graph.pop("render")["inputs"] | {"clip": ["clip", 0], "text": "a boat", "max_chunks": 0}
    del inputs["positive"], inputs["num_chunks"], graph["positive"]
    prompt_id = comfy.queue(graph | {"live": node("HeliosLiveVideo", **inputs)})
    take = first_finished(comfy, prompt_id)
    before = listed_as(comfy, take, lambda parts: len(parts) > 2)
    direct(comfy, take, "roll", chunk=1)
    again = listed_as(comfy, take, lambda parts: len(parts) > 1 and parts[1] != before[1])
    assert again[0] == before[0] and not set(again) & set(before[1:])
    # A player may still be asking for what it was told.
    assert get(comfy, f"/helios/takes/{take}/{before[1]}")[0] == 200
    thumbnail = get(comfy, f"/helios/takes/{take}/1/thumbnail")[1]
    assert "no-cache" in thumbnail["Cache-Control"], "the same address gets another picture"
    direct(comfy, take, "stop")
    assert failure(comfy.wait(prompt_id)) is None
    address = take_of(comfy, take)["film"]
    file = comfy.log_file.parent / "output" / address["subfolder"] / address["filename"]
    equal(played(f"{comfy.url}/helios/takes/{take}/stream.m3u8"), file)


def test_types_caches_and_ranges(comfy, grown):
    base = f"/helios/takes/{grown[0]}/"
    status, headers, text = get(comfy, base + "stream.m3u8")
    assert (status, headers["Content-Type"]) == (200, "application/vnd.apple.mpegurl")
    assert headers["Cache-Control"] == "no-cache"
    status, _, body = get(comfy, base + "stream.m3u8", If_None_Match=headers["ETag"])
    assert (status, body) == (304, b"")
    header = next(line for line in text.decode().split("\n") if "MAP" in line).split('"')[1]
    status, headers, body = get(comfy, base + header)
    assert (status, headers["Content-Type"]) == (200, 'video/mp4; codecs="avc1.64000a"')
    assert body[4:8] == b"ftyp" and b"mdat" not in body
    part = base + listed(comfy, grown[0])[0][1]
    status, headers, whole = get(comfy, part)
    assert (status, headers["Content-Type"], whole[4:8]) == (200, "video/iso.segment", b"moof")
    assert "immutable" in headers["Cache-Control"]
    assert get(comfy, part, If_None_Match=headers["ETag"])[0] == 304
    for asked, wanted in {"0-": whole, "5-9": whole[5:10], "-7": whole[-7:], "10-999999999": whole[10:]}.items():
        status, headers, data = get(comfy, part, Range=f"bytes={asked}")
        assert (status, data) == (206, wanted)
        start = len(whole) - len(data) if asked != "5-9" else 5
        assert headers["Content-Range"] == f"bytes {start}-{start + len(data) - 1}/{len(whole)}"
    for asked in ("999999999-", "x-y", "-0", "9-5"):
        assert get(comfy, part, Range=f"bytes={asked}")[0] == 416
    assert get(comfy, part, Origin="http://elsewhere.example", Sec_Fetch_Site="cross-site")[0] == 403


def test_what_is_not_there_is_refused_in_one_sentence(comfy, grown):
    take, name = grown[0], listed(comfy, grown[0])[0][1].removeprefix("stream/")
    key, nobody = name.split("-")[1].removesuffix(".m4s"), "0" * 32
    for path, status, words in [
        (f"{nobody}/stream.m3u8", 404, f"no take has the id {nobody}"),
        (f"{nobody}/stream/{name}", 404, f"no take has the id {nobody}"),
        (f"{take}/stream/7-{key}.m4s", 404, "has no such part now"),
        (f"{take}/stream/0-{key}.m4s", 404, "has no such part now"),
        (f"{take}/stream/1-{'f' * 32}.m4s", 404, "has no such part now"),
        ("x/stream.m3u8", 400, "is no take's id"),
        ("..%2F..%2Fa/stream.m3u8", 400, "is no take's id"),
        (f"{take}/stream/{key}.m4s", 400, "is no part of a stream"),
        (f"{take}/stream/1-{key}.mp4", 400, "is no part of a stream"),
        (f"{take}/stream/..%2F{key}.mp4", 400, "is no part of a stream"),
        (f"{take}/stream/-1-{key}.m4s", 400, "is no part of a stream"),
        (f"{take}/stream/{urllib.parse.quote('１')}-{key}.m4s", 400, "is no part of a stream"),
    ]:
        answered, _, body = get(comfy, f"/helios/takes/{path}")
        assert (answered, words in json.loads(body)["error"]) == (status, True), (path, body)


def test_a_lost_part_ends_what_is_listed(comfy):
    store = comfy.log_file.parent / "output" / "helios_store"
    prompt_id = comfy.queue(film("lost", 2, seed=302))
    take = first_finished(comfy, prompt_id)
    comfy.wait(prompt_id)
    names = [part.split("-")[1].removesuffix(".m4s") for part in listed(comfy, take)[0]]
    (store / f"{names[1]}.segment.mp4").unlink()
    assert [part.split("-")[1] for part in listed(comfy, take)[0]] == [f"{names[0]}.m4s"]
    (store / f"{names[0]}.segment.mp4").unlink()
    status, _, body = get(comfy, f"/helios/takes/{take}/stream.m3u8")
    assert (status, "has no chunk to play" in json.loads(body)["error"]) == (404, True)
