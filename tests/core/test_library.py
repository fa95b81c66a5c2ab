"""Takes read back from their manifests: after a kill, with sizes, and deleted without what others share."""

import json
from functools import partial

import pytest
import torch
from filelock import FileLock

from helios_core.errors import HeliosError
from helios_core.take.chunk import Chunk
from helios_core.take.history import History
from helios_core.take.library import TakeLibrary
from helios_core.take.store import ChunkStore
from helios_core.take.take import Take


@pytest.fixture
def store(tmp_path) -> ChunkStore:
    return ChunkStore(tmp_path / "store")


def chunk(index: int) -> Chunk:
    history = History.empty(64, 64)
    latents = torch.zeros(history.chunk_shape)
    return Chunk(index, latents, history.after(latents, torch.Generator(), 0))


def rendered(store: ChunkStore, name: str, *keys: str, **settings) -> Take:
    """A take whose process was killed after its last chunk."""
    take = Take(store, name, settings)
    for position, key in enumerate(keys):
        take.chunk(key, "", partial(chunk, position))
        store.put_segment(key * 2, b"film")
        take.in_video(key, store.folder / "film.partial.mp4", key * 2)
    return take


def test_a_take_without_its_process_was_interrupted(store):
    take = rendered(store, "killed", "a1", "b2", id="0" * 31 + "7")
    (found,) = TakeLibrary(store).takes()
    assert json.loads((store.takes / "killed.json").read_text())["status"] == "running"
    assert (found.id, found.name, found.status) == ("0" * 31 + "7", "killed", "interrupted")
    assert [(item.key, item.segment) for item in found.chunks] == [("a1", "a1a1"), ("b2", "b2b2")]
    take.end("failed: disk full")
    assert [(take.status, take.message) for take in TakeLibrary(store).takes()] == [("failed", "disk full")]


def test_a_take_that_another_process_writes_runs(store):
    rendered(store, "elsewhere", "a1")
    library = TakeLibrary(store)
    with FileLock(store.folder / ".film.partial.mp4.lock"):
        (found,) = library.takes()
        assert found.status == "running"
        with pytest.raises(HeliosError, match="being rendered; stop it first"):
            library.delete(found)
    assert [take.status for take in library.takes()] == ["interrupted"]


def test_delete_keeps_what_other_takes_share(store):
    rendered(store, "one", "a1", "b2").end("finished")
    rendered(store, "two", "a1", "c3").end("finished")
    library = TakeLibrary(store)
    one = next(take for take in library.takes() if take.name == "one")
    sizes = {path.name: state.st_size for path, state in store.files()}
    own = {name: size for name, size in sizes.items() if name.startswith(("b2.", "b2b2."))}
    shared = {name: size for name, size in sizes.items() if name.startswith(("a1.", "a1a1."))}
    assert len(own) == len(shared) == 2
    assert library.size(one) == sum(own.values()) + sum(shared.values())
    assert library.delete(one) == sum(own.values())
    assert {path.name for path, _ in store.files()} == sizes.keys() - own.keys()
    assert [take.name for take in library.takes()] == ["two"]


def test_what_a_manifest_says_leads_nowhere_else(store, tmp_path):
    (tmp_path / "secret.chunk.safetensors").write_text("not ours")
    entries = [{"chunk": 0, "key": "../secret", "segment": "../secret"}, {"chunk": True, "key": "a"}, {"chunk": -1}, 7]
    for name, content in {
        "edited": {"format": "helios-take", "settings": [], "chunks": entries, "status": 5, "video": 3},
        "other": {"format": "another"},
    }.items():
        store.write_manifest(name, content)
    library = TakeLibrary(store)
    (found,) = library.takes()
    assert (found.name, found.chunks, found.video, library.size(found)) == ("edited", (), None, 0)
    assert library.delete(found) == 0 and (tmp_path / "secret.chunk.safetensors").exists()
