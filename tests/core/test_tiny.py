"""helios-tiny: the released layout and names, what diffusers makes of it, and the promise about its bytes."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from helios_core.checkpoint import to_diffusers
from helios_core.checkpoint.vae_names import vae_to_diffusers
from helios_core.commands import tiny
from helios_core.errors import HeliosError
from helios_core.networks.transformer import HeliosTransformer, TransformerConfig
from helios_core.networks.vae import WanVAE
from helios_core.variants import VARIANTS

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"


def reference(name: str) -> dict[str, Any]:
    file = REFERENCE / name
    if not file.is_file():
        pytest.skip(f"the released facts ({name}) lie outside the checkout and are absent here")
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("tiny")
    return {variant: tiny.write_tiny(parent / variant, variant) for variant in VARIANTS}


def pipeline(folder: Path, variant: str) -> Any:
    diffusers = pytest.importorskip("diffusers")
    from helios_benchmarks.oracle import ReferencePyramid

    kind = diffusers.HeliosPipeline if variant == "base" else ReferencePyramid
    pipe = kind.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stored_shapes(*files: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def transformer_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    model = HeliosTransformer(**TransformerConfig.from_dict(config).to_dict(), device="meta")
    return {name: tuple(tensor.shape) for name, tensor in to_diffusers(model.state_dict()).items()}


def test_transformer_names_and_shapes_are_the_released_ones_at_the_released_size() -> None:
    rows = reference("transformer_keys.json")["tensors"]
    released = {
        name.replace("{0..39}", str(i)): tuple(shape)
        for name, shape in rows.items()
        for i in range(40 if "{0..39}" in name else 1)
    }
    shapes = transformer_shapes(reference("configs/transformer.json"))
    assert shapes == released
    assert (len(shapes), 4 * sum(map(math.prod, shapes.values()))) == (1101, 57_249_710_336)


def test_vae_names_and_shapes_are_the_released_ones_at_the_released_width() -> None:
    rows = reference("vae_keys.json")["tensors"]
    shapes = {
        name: tuple(tensor.shape) for name, tensor in vae_to_diffusers(WanVAE(device="meta").state_dict()).items()
    }
    assert shapes == {name: tuple(shape) for name, shape in rows.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_configurations_are_the_released_ones(folders: dict[str, Path], variant: str) -> None:
    released = reference(f"configs/{variant}.json")
    scheduler = json.loads((folders[variant] / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    assert scheduler == released["scheduler"]
    index = json.loads((folders[variant] / "model_index.json").read_text(encoding="utf-8"))
    assert index.items() >= released["model_index"].items()
    transformer = json.loads((folders[variant] / "transformer" / "config.json").read_text(encoding="utf-8"))
    assert transformer.keys() == reference("configs/transformer.json").keys()


def test_shards_and_their_index_agree(folders: dict[str, Path]) -> None:
    folder = folders["distilled"] / "transformer"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text(encoding="utf-8"))
    shapes = stored_shapes(*sorted(folder.glob("diffusion_pytorch_model-0000?-of-00002.safetensors")))
    assert shapes == transformer_shapes(tiny.TRANSFORMER_CONFIG)
    assert index["metadata"]["total_size"] == 4 * sum(map(math.prod, shapes.values()))
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as shard:
            assert shard.get_tensor(name).dtype == torch.float32


@pytest.mark.parametrize(
    ("part", "library", "model"),
    [
        ("transformer", "diffusers", "HeliosTransformer3DModel"),
        ("vae", "diffusers", "AutoencoderKLWan"),
        ("text_encoder", "transformers", "UMT5EncoderModel"),
    ],
)
def test_no_key_is_missing_or_unexpected(folders: dict[str, Path], part: str, library: str, model: str) -> None:
    module = pytest.importorskip(library)
    _, report = getattr(module, model).from_pretrained(folders["mid"] / part, output_loading_info=True)
    problems = {kind: list(names) for kind, names in report.items() if names}
    assert problems == {}


@pytest.mark.parametrize("variant", VARIANTS)
def test_diffusers_renders_a_chunk(folders: dict[str, Path], variant: str) -> None:
    pipe = pipeline(folders[variant], variant)
    assert torch.equal(pipe.text_encoder.shared.weight, pipe.text_encoder.encoder.embed_tokens.weight)
    steps: dict[str, Any] = {"pyramid_num_inference_steps_list": [1, 1, 1]}
    if variant == "base":
        steps = {"num_inference_steps": 2}
    frames = pipe(
        prompt="a red boat",
        height=64,
        width=64,
        num_frames=33,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **steps,
    ).frames[0]
    assert frames.shape == (33, 64, 64, 3)
    assert np.isfinite(frames).all()
    assert frames.std(axis=(0, 1, 2)).min() > 0.01  # not one flat colour
    assert np.mean((frames <= 0.0) | (frames >= 1.0)) < 0.2  # not clipped to black and white


def test_every_input_of_the_transformer_matters(folders: dict[str, Path]) -> None:
    """A parity test on these weights sees a wrong history, position, text or timestep far above its tolerance."""
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.HeliosTransformer3DModel.from_pretrained(folders["distilled"] / "transformer")
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def positions(start: int, stop: int) -> torch.Tensor:
        return torch.arange(start, stop)[None]

    inputs: dict[str, Any] = {
        "hidden_states": noise(1, 16, 9, 8, 8),
        "timestep": torch.tensor([600]),
        "encoder_hidden_states": noise(1, 20, 32),
        "latents_history_short": noise(1, 16, 2, 8, 8),
        "latents_history_mid": noise(1, 16, 2, 8, 8),
        "latents_history_long": noise(1, 16, 16, 8, 8),
        "indices_hidden_states": positions(20, 29),
        "indices_latents_history_short": torch.tensor([[0, 19]]),
        "indices_latents_history_mid": positions(17, 19),
        "indices_latents_history_long": positions(1, 17),
    }
    with torch.no_grad():
        velocity = model(**inputs).sample
        assert 0.3 < float(velocity.std()) < 3.0
        for name, value in inputs.items():
            other = value + 1 if not value.is_floating_point() else noise(*value.shape)
            if name == "timestep":
                other = torch.tensor([300])
            change = (model(**{**inputs, name: other}).sample - velocity).abs().max()
            assert change > 1e-3, name


def test_the_same_seed_writes_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    first, again = digest(folders["distilled"]), digest(tiny.write_tiny(tmp_path / "again"))
    assert again == first
    other = digest(tiny.write_tiny(tmp_path / "other", seed=1))
    weights = [name for name in first if name.endswith(".safetensors")]
    assert len(weights) == 4
    assert all(other[name] != first[name] for name in weights)


# The sum of the tensor that is drawn last, of seed 0: any change of names, shapes or their order changes it.
LAST_DRAWN = {
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": ("proj_out.bias", 0.06984728),
    "vae/diffusion_pytorch_model.safetensors": ("decoder.up_blocks.3.resnets.2.conv2.bias", 0.14267679),
    "text_encoder/model.safetensors": ("encoder.block.1.layer.1.layer_norm.weight", 32.15048331),
}


@pytest.mark.parametrize("file", LAST_DRAWN)
def test_a_seed_means_the_same_weights_as_ever(folders: dict[str, Path], file: str) -> None:
    name, total = LAST_DRAWN[file]
    with safe_open(folders["distilled"] / file, "pt") as tensors:
        assert float(tensors.get_tensor(name).double().sum()) == pytest.approx(total, rel=1e-5)


def test_an_existing_checkpoint_is_reused_untouched(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()  # an empty folder is as good as none
    folder = tiny.write_tiny(tmp_path / "tiny")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert tiny.write_tiny(str(folder)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("photos", encoding="utf-8")
    with pytest.raises(HeliosError, match="is not a helios-tiny checkpoint"):
        tiny.write_tiny(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def test_another_variant_or_seed_in_the_folder_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(HeliosError, match="another helios-tiny"):
        tiny.write_tiny(folders["base"], "mid")
    with pytest.raises(HeliosError, match="another helios-tiny"):
        tiny.write_tiny(folders["base"], "base", seed=3)
    with pytest.raises(HeliosError, match="turbo"):
        tiny.write_tiny(folders["base"], "turbo")


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "text_encoder_tensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tiny.write_tiny(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_is_tiny_knows_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    assert all(tiny.is_tiny(folder) for folder in folders.values())
    assert not tiny.is_tiny(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "HeliosPyramidPipeline"}', encoding="utf-8")
    assert not tiny.is_tiny(tmp_path)
    assert "random weights" in (folders["mid"] / "README.txt").read_text(encoding="utf-8")
