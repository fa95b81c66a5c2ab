"""The chunk store: keys, files, damage, eviction, and many processes on one folder."""

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from helios_core.errors import HeliosError
from helios_core.take.chunk import Chunk
from helios_core.take.film import chunk_key, start_key
from helios_core.take.history import History
from helios_core.take.store import PART_SUFFIX, ChunkStore
from helios_core.take.take import Take
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings, encode_segment

PREVIOUS = "0" * 40


def chunk(seed: int = 0) -> Chunk:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 16, 9, 8, 8, generator=generator)
    return Chunk(0, latents, History.empty(64, 64).after(latents, generator, seed))


@pytest.fixture
def store(tmp_path) -> ChunkStore:
    store = ChunkStore(tmp_path / "store")
    store.prepare()
    return store


def same(a: Chunk, b: Chunk) -> bool:
    tensors = [(a.latents, b.latents)]
    tensors += [(getattr(a.history, n), getattr(b.history, n)) for n in ("latents", "anchor", "random_state")]
    plain = (replace(x.history, latents=None, anchor=None, random_state=None) for x in (a, b))
    return all(torch.equal(x, y) for x, y in tensors) and len({repr(x) for x in plain}) == 1


def test_keys_follow_everything_before():
    start = start_key(History.empty(64, 64))
    assert start != start_key(History.empty(64, 128))
    first = chunk_key(start, model="m", seed=1)
    assert first == chunk_key(start, seed=1, model="m")
    assert len({first, chunk_key(start, model="n", seed=1), chunk_key(start, model="m", seed=2), chunk_key(first)}) == 4


def test_a_chunk_returns_whole(store):
    assert store.get_chunk("a") is None
    store.put_chunk("a", PREVIOUS, chunk())
    assert same(store.get_chunk("a"), chunk())
    assert not list(store.folder.glob(f"*{PART_SUFFIX}"))


@pytest.mark.parametrize("damage", ["flip", "header", "cut", "empty", "foreign", "renamed"])
def test_damage_is_named_removed_and_made_again(store, caplog, damage):
    store.put_chunk("a", PREVIOUS, chunk())
    path = store.chunk_file("a")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "header":
        data[data.index(b'"previous_key') + 1] ^= 1
    elif damage == "foreign":
        save_file({"x": torch.zeros(3)}, path)
        data = bytearray(path.read_bytes())
    elif damage == "renamed":
        store.put_chunk("b", PREVIOUS, chunk(1))
        data = bytearray(store.chunk_file("b").read_bytes())
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b""}.get(damage, data))
    take = Take(store, "take", {})
    found = take.chunk("a", PREVIOUS, chunk)
    assert not found.reused and same(store.get_chunk("a"), chunk())
    assert path.name in caplog.text and "damaged" in caplog.text


@pytest.fixture(scope="module")
def segment() -> bytes:
    return encode_segment(torch.arange(33).view(-1, 1, 1, 1).expand(33, 32, 64, 3).byte() * 7, VideoSettings(64, 32))


def test_a_segment_returns_whole_and_its_file_plays(store, tmp_path, segment):
    assert store.get_segment("a") is None
    store.put_segment("a", segment)
    assert store.get_segment("a") == segment
    (tmp_path / "segment.mp4").write_bytes(segment)
    assert torch.equal(read_video(store.folder / "a.segment.mp4"), read_video(tmp_path / "segment.mp4"))


def test_any_damage_to_a_segment_is_named_and_removes_it(store, caplog, segment):
    store.put_segment("a", segment)
    store.put_segment("b", segment)
    path = store.segment_file("a")
    whole = path.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), 97)]
    cut = [whole[:length] for length in (0, 1, 60, len(whole) // 2, len(segment), len(whole) - 1)]
    for data in (*flipped, *cut, whole + b"x", store.segment_file("b").read_bytes()):
        path.write_bytes(data)
        caplog.clear()
        assert store.get_segment("a") is None and not path.exists()
        assert path.name in caplog.text and "damaged" in caplog.text
    assert store.get_segment("b") == segment


def test_segments_of_earlier_versions_are_never_read_and_go_with_the_rest(store, segment):
    old = store.folder / "a.segment.safetensors"
    content = {"segment": torch.frombuffer(bytearray(segment), dtype=torch.uint8)}
    save_file(content, old)
    assert store.get_segment("a") is None and old.exists()
    store.clear()
    assert not old.exists()
    save_file(content, old)
    os.utime(old, (0, 0))
    store.max_bytes = 1
    store.put_segment("a", segment)
    assert not old.exists() and store.get_segment("a") == segment


def test_a_failed_write_leaves_nothing_and_keeps_the_rest(store, monkeypatch):
    store.put_chunk("a", PREVIOUS, chunk())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HeliosError, match=r"No space left on device.*finished chunks are kept"):
        store.put_chunk("b", PREVIOUS, chunk())
    assert [path.name for path, _ in store.files()] == [store.chunk_file("a").name]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HeliosError, match=r"chunk store .* cannot be written"):
        Take(ChunkStore(tmp_path / "file" / "store"), "take", {})


def aged(store, seconds):
    for path in store.folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def test_eviction_takes_what_was_used_longest_ago(store):
    for key in "abc":
        store.put_chunk(key, PREVIOUS, chunk())
    size = store.size() // 3
    for age, key in enumerate("bac"):
        os.utime(store.chunk_file(key), (time.time() - 8000 + age * 100,) * 2)
    (store.folder / f"{'0' * 32}{PART_SUFFIX}").touch()
    os.utime(store.folder / f"{'0' * 32}{PART_SUFFIX}", (0, 0))
    store.get_chunk("b")
    store.max_bytes = 3 * size + 100
    store.put_chunk("d", PREVIOUS, chunk())
    assert {key for key in "abcd" if store.chunk_file(key).exists()} == set("bcd")
    assert not list(store.folder.glob(f"*{PART_SUFFIX}")), "left behind by a killed process"


def test_eviction_spares_a_running_take(store):
    store.max_bytes = 1
    take = Take(store, "take", {})
    for key in "abc":
        aged(store, 4000)  # as if every chunk took over an hour, at whose end the take touches its files
        store.touch("abc")
        take.chunk(key, PREVIOUS, chunk)
    assert all(store.chunk_file(key).exists() for key in "abc")
    aged(store, 4000)
    store.put_chunk("d", PREVIOUS, chunk())
    assert not any(store.chunk_file(key).exists() for key in "abc")


def test_clear(store):
    Take(store, "take", {}).chunk("a", PREVIOUS, chunk)
    assert store.clear() > 0
    assert store.size() == 0 and not list(store.takes.iterdir())


def test_foreign_files_in_the_folder_are_left_alone(tmp_path):
    foreign = [tmp_path / "film.part", tmp_path / "model.chunk.safetensors", tmp_path / "takes" / "notes.json"]
    (tmp_path / "takes").mkdir()
    for path in foreign:
        path.write_text("[]")
        os.utime(path, (0, 0))
    store = ChunkStore(tmp_path, max_bytes=0, grace=0)
    store.prepare()
    store.clear()
    assert all(path.exists() for path in foreign)


def hammer(folder: str, seed: int) -> None:
    """Writes, reads, evicts and clears as fast as it can; fails on anything but whole chunks."""
    store, rng = ChunkStore(folder, max_bytes=400_000, grace=0.0), random.Random(seed)
    for _ in range(60):
        number = rng.randrange(6)
        found = store.get_chunk(str(number))
        assert found is None or same(found, chunk(number))
        store.put_chunk(str(number), PREVIOUS, chunk(number))
        store.write_manifest("shared", {"writer": seed, "text": "x" * 1000})
        assert set(json.loads((store.takes / "shared.json").read_text(encoding="utf-8"))) == {"writer", "text"}


HAMMER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("store_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.hammer(sys.argv[2], int(sys.argv[3]))
"""


def test_processes_share_a_folder(store, caplog):
    commands = [[sys.executable, "-c", HAMMER, __file__, str(store.folder), seed] for seed in "12"]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(120) for process in processes] == [0, 0]
    for number in range(6):
        found = store.get_chunk(str(number))
        assert found is None or same(found, chunk(number))
    assert "damaged" not in caplog.text
