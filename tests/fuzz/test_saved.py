"""What Helios wrote itself, damaged: histories, the chunk store, growing films, and clips that users give."""

import dataclasses
import functools
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helios_fuzz_oracles import bounded, check_sentence, count, outcome, tree
from helios_fuzz_profiles import tries
from helios_fuzz_strategies import (
    changed_json,
    damaged,
    dumps,
    json_files,
    json_values,
    safetensors_files,
    split,
    texts,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load, save

from helios_core.errors import HeliosError
from helios_core.take.chunk import Chunk
from helios_core.take.fingerprint import fingerprint
from helios_core.take.history import CUDA_STATE_BYTES, History
from helios_core.take.history_file import load_history, save_history
from helios_core.take.store import VERSION, ChunkStore
from helios_core.take.take import Take, check_name
from helios_core.video.growing import GrowingVideo
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings, encode_segment

KEY, PREVIOUS = "a" * 40, "b" * 40
SETTINGS = VideoSettings(16, 16)


def history(seed=3):
    generator = torch.Generator().manual_seed(seed)
    begun = History.empty(64, 64)
    return begun.after(torch.randn(begun.chunk_shape, generator=generator), generator, seed)


def same(one, other):
    """Equal fields, bit for bit."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)]
    return all(a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
               else type(a) is type(b) and a == b for a, b in pairs)  # fmt: skip


def renders_from(loaded):
    """A history that was accepted carries what the next chunk needs."""
    short, mid, long = loaded.context()
    assert all(torch.isfinite(part).all() for part in (short, mid, long))
    assert loaded.latents.dtype == torch.float32 and loaded.chunk >= 0
    assert loaded.seed is None or 0 <= loaded.seed < 2**64
    if loaded.random_state is not None and len(loaded.random_state) == CUDA_STATE_BYTES:
        return  # of a device that need not be here
    drawn = torch.randn(loaded.chunk_shape, generator=loaded.seeded(torch.Generator(), loaded.seed or 0))
    assert loaded.after(drawn, loaded.seeded(torch.Generator(), 0), 0).chunk == loaded.chunk + 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    file = tmp_path_factory.mktemp("history") / "whole.safetensors"
    save_history(history(), file)
    return file.read_bytes()


@tries(120)
@given(changed=st.data())
def test_damaged_history(tmp_path, saved, changed):
    """Bytes that changed on the way are told, whatever they were."""
    file = tmp_path / "take.safetensors"
    data = changed.draw(damaged(saved))
    file.write_bytes(data)
    loaded = outcome(lambda: load_history(file), file.name, size=len(data))
    assert loaded is None or same(loaded, history())


@tries(120)
@given(changed=st.data())
def test_crafted_history(tmp_path, saved, changed):
    file = tmp_path / "take.safetensors"
    data = changed.draw(safetensors_files(saved))
    file.write_bytes(data)
    loaded = outcome(lambda: load_history(file), file.name, size=len(data))
    if loaded is not None:
        renders_from(loaded)


@tries(120)
@given(changed=st.data(), checksum=st.booleans())
def test_forged_history(tmp_path, saved, changed, checksum):
    """Tensors of any kind and metadata of any value, in a file without a checksum or with the one of another."""
    file = tmp_path / "take.safetensors"
    tensors, metadata = load(saved), split(saved)[0]["__metadata__"]
    if not checksum:
        metadata.pop("checksum", None)
    if changed.draw(st.booleans()):
        key = changed.draw(st.sampled_from(sorted(metadata)))
        value = changed.draw(json_values)
        metadata[key] = value if isinstance(value, str) else dumps(value).decode("utf-8", "replace")
    else:
        forge(changed.draw, tensors)
    try:
        data = save(tensors, {key: value.encode("utf-8", "replace").decode() for key, value in metadata.items()})
    except ValueError:
        assume(False)
    file.write_bytes(data)
    loaded = outcome(lambda: load_history(file), file.name, size=len(data))
    if loaded is not None:
        renders_from(loaded)


def forge(draw, tensors):
    """Another content under a tensor's name: removed, of another type or shape, or of numbers that are none."""
    name = draw(st.sampled_from(sorted(tensors)))
    how = draw(st.sampled_from(["remove", "dtype", "shape", "number"]))
    if how == "remove":
        del tensors[name]
    elif how == "dtype":
        dtypes = [torch.int32, torch.bool, torch.float16, torch.float64, torch.uint8, torch.float8_e5m2]
        tensors[name] = tensors[name].float().to(draw(st.sampled_from(dtypes)))
    elif how == "shape":
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 8, 16, 19]), max_size=6))
        tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
    else:
        values = [float("nan"), float("inf"), float("-inf"), 1e38, 255]
        changed = tensors[name].clone().reshape(-1)
        value = draw(st.sampled_from(values if changed.is_floating_point() else [0, 255]))
        changed[draw(st.integers(0, changed.numel() - 1))] = value
        tensors[name] = changed.reshape(tensors[name].shape)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The files of a stored chunk and segment, as bytes."""
    store = ChunkStore(tmp_path_factory.mktemp("store"))
    store.put_chunk(KEY, PREVIOUS, chunk())
    store.put_segment(KEY, segments()[0])
    return store.chunk_file(KEY).read_bytes(), store.segment_file(KEY).read_bytes()


def chunk():
    after = history()
    return Chunk(after.chunk - 1, after.latents[:, :, -9:].clone(), after)


@functools.cache
def segments():
    """Three encoded chunks of moving grey."""
    ramp = torch.arange(33)[:, None, None, None].expand(33, 16, 16, 3)
    return [encode_segment((ramp * 2 + 60 * index).to(torch.uint8), SETTINGS) for index in range(3)]


@tries(150)
@given(changed=st.data(), part=st.sampled_from([0, 1]))
def test_store_entry(tmp_path, stored, changed, part):
    """A damaged entry is absent and removed; one that is found is the one that was put; another version's stays."""
    store = ChunkStore(tmp_path / "store")
    store.prepare()
    path = (store.chunk_file, store.segment_file)[part](KEY)
    whole = stored[part]
    data = changed.draw(st.one_of(damaged(whole), safetensors_files(stored[0])))
    path.write_bytes(data)
    with bounded(len(data)):
        found = (store.get_chunk, store.get_segment)[part](KEY)
    count("made again" if found is None else "accepted")
    if found is None:
        assert not path.exists() or split(data)[0]["__metadata__"]["version"] != str(VERSION)
    elif part:
        assert found == segments()[0]
    else:
        assert torch.equal(found.latents, chunk().latents) and same(found.history, history())


@tries(120)
@given(changed=st.data())
def test_forged_store_entry(tmp_path, stored, changed):
    """A right checksum over a content that is no chunk."""
    store = ChunkStore(tmp_path / "store")
    store.prepare()
    tensors, metadata = load(stored[0]), split(stored[0])[0]["__metadata__"]
    values = json.loads(metadata["values"])
    if changed.draw(st.booleans()):
        text = changed.draw(json_files(values)).decode("utf-8", "replace")
    else:
        forge(changed.draw, tensors)
        text = dumps(changed.draw(changed_json(values))).decode() if changed.draw(st.booleans()) else json.dumps(values)
    metadata |= {"values": text, "checksum": fingerprint(text, tensors)}
    data = save(tensors, metadata)
    store.chunk_file(KEY).write_bytes(data)
    with bounded(len(data)):
        found = store.get_chunk(KEY)
    count("made again" if found is None else "accepted")
    if found is not None:
        renders_from(found.history)


@tries(60)
@given(changed=st.data())
def test_manifests(tmp_path, changed):
    """A list of takes survives anything that lies in its folder."""
    store = ChunkStore(tmp_path / "store")
    take = Take(store, "film", {})
    take.end("finished")
    whole = json.loads((store.takes / "film.json").read_text(encoding="utf-8"))
    named = texts.filter(lambda text: len(text) < 300).map(lambda name: whole | {"take": name})
    outside = st.just(whole | {"take": "../../kept"})
    data = changed.draw(st.one_of(json_files(whole), st.one_of(named, outside).map(dumps)))
    (store.takes / "film.json").write_bytes(data)
    (tmp_path / "kept.json").touch()
    with bounded():
        assert all(isinstance(manifest, dict) for manifest in store.manifests())
        store.clear()
    assert (tmp_path / "kept.json").exists()


@tries(200)
@given(name=texts)
def test_take_names(tmp_path, name):
    """What is accepted as a name is a file in the folder."""
    (tmp_path / "outside").mkdir(exist_ok=True)
    before = tree(tmp_path / "outside")
    store = ChunkStore(tmp_path / "store")
    if outcome(lambda: check_name(name), "take") is not None:
        Take(store, name, {}).end("finished")
        assert (store.takes / f"{name}.json").is_file() and (store.takes / f"{name}.json").parent == store.takes
    assert tree(tmp_path / "outside") == before


def film(path, count=3):
    video = GrowingVideo(path)
    for data in segments()[:count]:
        video.append(data)
    video.cut()
    video.close()
    return video.path.read_bytes()


@tries(60)
@given(changed=st.data())
def test_growing_film_over_anything(tmp_path, changed):
    """Whatever an earlier run left under the name, the film is the one of a clean folder."""
    whole = film(tmp_path / "clean.partial.mp4")
    path = tmp_path / "film.partial.mp4"
    path.write_bytes(changed.draw(st.one_of(damaged(whole), st.binary(max_size=300))))
    assert film(path) == whole


@functools.cache
def clip(index_first):
    """A short MP4 with its index in front of the frames or behind them."""
    file = Path(tempfile.mkdtemp()) / "clip.mp4"
    with av.open(str(file), "w", format="mp4", options={"movflags": "faststart"} if index_first else {}) as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20 * index, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = file.read_bytes()
    shutil.rmtree(file.parent)
    return data


@tries(100)
@given(changed=st.data(), index_first=st.booleans())
def test_clips(tmp_path, changed, index_first):
    """A clip cut or changed anywhere."""
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    file = tmp_path / "clip.mp4"
    data = changed.draw(damaged(clip(index_first)))
    file.write_bytes(data)
    frames = outcome(lambda: read_video(file), file.name, size=len(data))
    assert frames is None or (frames.ndim == 4 and frames.shape[-1] == 3)


@pytest.mark.parametrize("index_first", [True, False])
def test_every_cut_of_a_clip(tmp_path, index_first):
    """At any byte: all frames, or a sentence; never fewer frames without a word."""
    whole, file = clip(index_first), tmp_path / "clip.mp4"
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        frames = outcome(lambda: read_video(file), file.name)
        assert frames is None or len(frames) == 12, f"{len(frames)} of 12 frames of {length} bytes"


@pytest.mark.parametrize("kind", ["folder", "link", "device"])
@pytest.mark.skipif(os.name == "nt", reason="needs links and devices")
def test_things_that_are_no_files(tmp_path, kind):
    path = tmp_path / "take.safetensors"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link": path, "device": "/dev/zero"}[kind])
    for read in (load_history, read_video):
        assert outcome(functools.partial(read, path), path.name) is None
    store = ChunkStore(tmp_path / "store")
    store.prepare()
    path.rename(store.chunk_file(KEY))
    with bounded():
        assert store.get_chunk(KEY) is None
    with pytest.raises(HeliosError) as refused:
        store.put_chunk(KEY, PREVIOUS, chunk())
        raise HeliosError("replaced, by a rename, as it should.")
    check_sentence(str(refused.value))


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_links_are_not_followed(tmp_path):
    """Under the names that a render writes, a link leads nowhere: what it points at stays as it is."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    path = tmp_path / "film.partial.mp4"
    path.symlink_to(outside / "kept")
    path.with_name(".film-2.partial.mp4.lock").symlink_to(outside / "kept")
    assert film(path) == film(tmp_path / "clean.partial.mp4")
    store = ChunkStore(tmp_path / "store")
    store.prepare()
    for file in (store.chunk_file(KEY), store.segment_file(KEY), store.folder / "takes" / "film.json"):
        file.parent.mkdir(exist_ok=True)
        file.symlink_to(outside / "kept")
    store.put_chunk(KEY, PREVIOUS, chunk())
    store.put_segment(KEY, segments()[0])
    Take(store, "film", {}).end("finished")
    assert (outside / "kept").read_bytes() == b"kept" and len(list(outside.iterdir())) == 1
    assert same(store.get_chunk(KEY).history, history())
