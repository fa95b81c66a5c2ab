"""A history on disk: everything comes back, and bad files are named."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from helios_core.errors import HeliosError
from helios_core.take.history import History
from helios_core.take.history_file import load_history, save_history


def history():
    generator = torch.Generator().manual_seed(3)
    begun = dataclasses.replace(History.empty(64, 128), skip_first_chunk=True)
    return begun.after(torch.randn(begun.chunk_shape, generator=generator), generator, 3)


def test_round_trip_is_exact(tmp_path):
    saved = history()
    save_history(saved, tmp_path / "take.safetensors")
    loaded = load_history(tmp_path / "take.safetensors")
    for field in dataclasses.fields(saved):
        before, after = getattr(saved, field.name), getattr(loaded, field.name)
        assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after, field.name
    assert [path.name for path in tmp_path.iterdir()] == ["take.safetensors"]
    drawn = [torch.randn(3, generator=h.seeded(torch.Generator(), 3)) for h in (saved, loaded)]
    assert torch.equal(*drawn)


def test_bad_files_are_named(tmp_path):
    file = tmp_path / "take.safetensors"
    with pytest.raises(HeliosError, match="does not exist"):
        load_history(file)
    with pytest.raises(HeliosError, match="cannot be written"):
        save_history(history(), tmp_path / "absent" / "take.safetensors")
    save_history(history(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HeliosError, match="is damaged"):
        load_history(file)
    for metadata in ({"format": "other"}, {"format": "helios-history"}):
        save_file({"latents": torch.zeros(1, 16, 19, 8, 8)}, file, metadata)
        with pytest.raises(HeliosError, match="is not a Helios history"):
            load_history(file)
