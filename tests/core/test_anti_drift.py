"""Adaptive anti-drift against the paper's formula, written down again here; off, everything is as it was."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helios_core import AntiDrift, HeliosPipeline
from helios_core.commands.cli import main
from helios_core.errors import HeliosError
from helios_core.take.film import Film, start_key
from helios_core.take.history import History
from helios_core.take.history_file import load_history, save_history
from helios_core.take.store import ChunkStore
from helios_core.take.take import Take

SEED = 7
BATCH = 2
# Mean and spread of a hand-made film's chunks: calm, then off in both, off in the mean alone, off in both for long.
CHUNKS = [(0.0, 1.0), (0.02, 1.02), (0.5, 1.6), (0.6, 1.0), (0.9, 1.9), (0.9, 1.9), (0.9, 1.9)]


def made(index, batch=BATCH):
    mean, spread = CHUNKS[index]
    drawn = torch.randn(batch, 16, 9, 8, 8, generator=torch.Generator().manual_seed(100 + index))
    drawn = drawn - drawn.mean(dim=(2, 3, 4), keepdim=True)
    return mean + spread * drawn / drawn.std(dim=(2, 3, 4), keepdim=True)


@dataclasses.dataclass
class MadeFilm:
    """A ChunkSource of the chunks above, which draws once a chunk as samplers do."""

    batch: int = BATCH
    sampled: int = 0

    def sample(self, history, seed):
        generator = history.seeded(torch.Generator(), seed)
        torch.randn(3, generator=generator)
        self.sampled += 1
        latents = made(history.chunk, self.batch)
        return latents, history.after(latents, generator, seed)

    def determined_by(self, history):
        return {"source": "made"}


def expected_contexts(momentum=0.9, threshold=0.15, strength=0.1):
    """The formula of the paper's code, step by step in double: what later chunks see of each, and whether noised."""
    generator = torch.Generator().manual_seed(SEED)
    mean = variance = None
    for index in range(len(CHUNKS)):
        torch.randn(3, generator=generator)
        chunk = made(index)
        flat = chunk.double().transpose(0, 1).reshape(16, BATCH, -1)
        mu = flat.sum(-1) / flat.shape[-1]
        var = ((flat - mu[..., None]) ** 2).sum(-1) / (flat.shape[-1] - 1)
        mean = mu if mean is None else momentum * mean + (1 - momentum) * mu
        variance = var if variance is None else momentum * variance + (1 - momentum) * var
        away = [((new - old) ** 2).sum(0).sqrt().mean() for new, old in ((mu, mean), (var, variance))]
        departs = bool(away[0] > threshold and away[1] > threshold)
        if departs:
            chunk = chunk + strength * torch.randn(chunk.shape, generator=generator)
        yield chunk, departs


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5, "threshold": 0.4, "strength": 0.3}])
def test_history_is_corrupted_as_the_formula_says(settings):
    start = dataclasses.replace(History.empty(64, 64, BATCH), anti_drift=AntiDrift(**settings))
    expected = list(expected_contexts(**settings))
    stepped_in = [departs for _, departs in expected]
    assert 0 < sum(stepped_in) < len(CHUNKS) - 1, "the hand-made film is calm and drifts"
    for chunk, (context, departs) in zip(Film(MadeFilm(), start, len(CHUNKS), SEED).chunks(), expected, strict=True):
        assert torch.equal(chunk.latents, made(chunk.index)), "what is shown is not noised"
        assert chunk.departed == departs
        assert (chunk.history.latents[:, :, -9:] - context).abs().max() <= 1e-6


def test_off_is_bit_for_bit_what_was_before(tmp_path):
    """Keys of stored chunks, files and latents know nothing of it; settings that never step in change keys alone."""
    start = History.empty(64, 64, BATCH)
    assert set(start.parts()[1]) == {"anchor", "chunk", "seed", "random_state", "skip_first_chunk"}
    # Of the release before there was anti-drift.
    assert start_key(History.empty(64, 64)) == "60e1688d1347f5380c16fb7dc032468a1a9096e8"
    never = dataclasses.replace(start, anti_drift=AntiDrift(threshold=100.0))
    films = [list(Film(MadeFilm(), begun, 7, SEED).chunks()) for begun in (start, never)]
    for off, calm in zip(*films, strict=True):
        assert torch.equal(off.history.latents, calm.history.latents)
        assert torch.equal(off.history.random_state, calm.history.random_state)
    assert start_key(start) != start_key(never)
    save_history(films[0][-1].history, tmp_path / "off.safetensors")
    with safe_open(tmp_path / "off.safetensors", "pt") as file:
        assert "anti_drift" not in file.metadata() and file.metadata()["version"] == "1"


def test_a_take_stops_and_goes_on_with_the_same_bits(tmp_path):
    """From the store, and from a history file in the middle."""
    start = dataclasses.replace(History.empty(64, 64, BATCH), anti_drift=AntiDrift())
    whole = list(Film(MadeFilm(), start, 7, SEED).chunks())
    store = ChunkStore(tmp_path / "store")
    list(Film(MadeFilm(), start, 4, SEED).chunks(Take(store, "film", {})))
    source = MadeFilm()
    resumed = list(Film(source, start, 7, SEED).chunks(Take(store, "film", {})))
    assert source.sampled == 3
    manifest = json.loads((store.takes / "film.json").read_text())
    assert [entry.get("anti_drift", False) for entry in manifest["chunks"]] == [chunk.departed for chunk in whole]
    save_history(whole[2].history, tmp_path / "middle.safetensors")
    middle = load_history(tmp_path / "middle.safetensors")
    assert middle.anti_drift.corrupted and torch.equal(middle.anti_drift.mean, whole[2].history.anti_drift.mean)
    continued = [*whole[:3], *Film(MadeFilm(), middle, 4, SEED).chunks()]
    for one, other, third in zip(whole, resumed, continued, strict=True):
        for history in (other.history, third.history):
            assert torch.equal(one.history.latents, history.latents)
            assert torch.equal(one.history.anti_drift.variance, history.anti_drift.variance)


def test_settings_are_part_of_every_key(tmp_path):
    store = ChunkStore(tmp_path / "store")
    policies = (
        None,
        AntiDrift(),
        AntiDrift(strength=0.2),
        AntiDrift(mean=torch.zeros(BATCH, 16), variance=torch.ones(BATCH, 16)),
    )
    keys = []
    for policy in policies:
        start = dataclasses.replace(History.empty(64, 64, BATCH), anti_drift=policy)
        keys.append([chunk.key for chunk in Film(MadeFilm(), start, 2, SEED).chunks(Take(store, "film", {}))])
    assert len({key for pair in keys for key in pair}) == 2 * len(policies)


def test_new_settings_keep_what_was_seen():
    state = dataclasses.replace(AntiDrift(), mean=torch.zeros(1, 16), variance=torch.ones(1, 16))
    changed = AntiDrift(threshold=0.5).continuing(state)
    assert changed.threshold == 0.5 and changed.mean is state.mean
    assert AntiDrift(threshold=0.5).continuing(None) == AntiDrift(threshold=0.5)


def test_old_history_files_load(tmp_path):
    """A file as it was written before: version 1, no anti-drift, no checksum."""
    generator = torch.Generator().manual_seed(3)
    begun = History.empty(64, 64)
    history = begun.after(torch.randn(begun.chunk_shape, generator=generator), generator, 3)
    tensors = {"latents": history.latents, "anchor": history.anchor, "random_state": history.random_state}
    stated = {"format": "helios-history", "version": "1", "chunk": "1", "seed": "3", "skip_first_chunk": "False"}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "old.safetensors", stated)
    loaded = load_history(tmp_path / "old.safetensors")
    assert loaded.anti_drift is None and torch.equal(loaded.latents, history.latents)


@pytest.mark.parametrize("changed", [
    {"anti_drift": "5"}, {"anti_drift": "{}"}, {"anti_drift": '{"anti_drift.momentum": "x"}'},
    {"anti_drift": '{"anti_drift.momentum": 2}'}, {"anti_drift": '{"anti_drift.strength": NaN}'},
    {"anti_drift": '{"anti_drift.corrupted": 1}'}, {"anti_drift": '{"anti_drift.other": 1}'},
    {"anti_drift": '{"anti_drift": null}'}, {"anti_drift.mean": torch.zeros(1, 15)},
    {"anti_drift.mean": torch.full((1, 16), float("nan"))}, {"anti_drift.variance": torch.zeros(2, 16)},
    {"anti_drift.variance": torch.zeros(1, 16, dtype=torch.int32)}, {"anti_drift.mean": None},
])  # fmt: skip
def test_damaged_states_are_named(tmp_path, changed):
    start = dataclasses.replace(History.empty(64, 64), anti_drift=AntiDrift())
    (chunk,) = Film(MadeFilm(batch=1), start, 1, SEED).chunks()
    file = tmp_path / "take.safetensors"
    save_history(chunk.history, file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    for name, value in changed.items():
        if isinstance(value, str):
            metadata[name] = value
        elif value is None:
            del tensors[name]
        else:
            tensors[name] = value
    del metadata["checksum"]
    save_file(tensors, file, metadata)
    if changed == {"anti_drift": "{}"}:
        assert load_history(file).anti_drift.momentum == 0.9
        return
    with pytest.raises(HeliosError):
        load_history(file)


@pytest.mark.parametrize("name", ["momentum", "threshold", "strength"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.5", None, True, 101.0])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(HeliosError, match=f"anti-drift {name}=.* must be a number from 0 to"):
        AntiDrift(**{name: value})


def test_pipeline_keyword_and_command_line_flag(tiny_folder, tmp_path, capsys):
    """With a threshold of 0 every chunk after the first departs, and the next one sees another past."""
    pipe = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    request = {"prompt": "a boat", "width": 64, "height": 64, "pyramid_num_inference_steps_list": [1, 1, 1],
               "is_amplify_first_chunk": False}  # fmt: skip
    films = []
    for policy in (None, AntiDrift(threshold=0.0)):
        films.append(list(pipe.stream(**request, num_frames=99, output_type="latent", anti_drift=policy)))
    off, on = ([chunk.latents for chunk in film] for film in films)
    assert [chunk.departed for chunk in films[1]] == [False, True, True]
    assert torch.equal(off[1], on[1]) and not torch.equal(off[2], on[2])

    arguments = ["generate", "--model", str(tiny_folder("distilled")), "--prompt", "a boat", "--seconds", "1.3",
                 "--width", "64", "--height", "64", "--steps", "1", "1", "1", "--take", "film",
                 "--output", str(tmp_path / "film.mp4"), "--anti-drift"]  # fmt: skip
    assert main(arguments) == 0
    (file,) = (tmp_path / "helios_store").glob("*.chunk.safetensors")
    assert load_file(file)["history.anti_drift.mean"].shape == (1, 16)
    assert main([*arguments, "0.9", "0.15"]) == 2
    assert main([*arguments, "0.9", "-3", "0.1"]) == 2
    said = capsys.readouterr().err
    assert "--anti-drift takes no number or three (momentum, threshold, strength), not 2." in said
    assert "anti-drift threshold=-3.0 must be a number from 0 to 100; released: 0.15." in said
