"""Takes: names, and the manifest that tells people what one consists of."""

import json

import pytest
import torch

from helios_core.errors import HeliosError
from helios_core.take.chunk import Chunk
from helios_core.take.history import History
from helios_core.take.store import ChunkStore
from helios_core.take.take import Take


@pytest.fixture
def store(tmp_path) -> ChunkStore:
    return ChunkStore(tmp_path / "store")


def chunk() -> Chunk:
    history = History.empty(64, 64)
    latents = torch.zeros(history.chunk_shape)
    return Chunk(0, latents, history.after(latents, torch.Generator(), 0))


def test_manifest_tells_people(store):
    take = Take(store, "my take", {"prompt": "ein Boot – мир", "seed": 3})
    take.chunk("a", "0" * 40, chunk)
    take.in_video("a", store.folder / "film.mp4")
    take.end("finished")
    text = (store.takes / "my take.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert "ein Boot – мир" in text and manifest["status"] == "finished"
    (entry,) = manifest["chunks"]
    assert entry["in_video"] and not entry["reused"] and (store.folder / entry["file"]).exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\\b", " a", "a.", "x" * 101, "a\n"])
def test_take_names_that_could_leave_the_folder_are_refused(store, name):
    with pytest.raises(HeliosError, match="not a usable name"):
        Take(store, name, {})
