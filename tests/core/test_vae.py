"""The VAE and its name mapping, against diffusers' AutoencoderKLWan with random weights."""

import functools
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from helios_core.checkpoint.vae import load_vae
from helios_core.checkpoint.vae_names import vae_from_diffusers, vae_to_diffusers
from helios_core.errors import HeliosError
from helios_core.networks.vae import VAEConfig, WanVAE
from helios_core.video.reader import read_video

RELEASED_KEYS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "vae_keys.json"
CLIP = RELEASED_KEYS.parents[1] / "media" / "toy_2.mp4"
TOLERANCE = 2e-5


@functools.cache
def reference(base_dim: int = 8, **options) -> AutoencoderKLWan:
    """A reference VAE whose norms and biases are not the neutral ones they are initialised with."""
    generator = torch.Generator().manual_seed(base_dim)
    torch.manual_seed(base_dim)
    vae = AutoencoderKLWan(base_dim=base_dim, **options).eval().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            parameter.copy_(1 + 0.3 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        else:
            parameter.mul_(2)  # so that the clamp of the output is reached
    return vae


@functools.cache
def ours(base_dim: int = 8) -> WanVAE:
    other = reference(base_dim)
    vae = WanVAE(VAEConfig.from_diffusers(dict(other.config)))
    vae.load_state_dict(vae_from_diffusers(other.state_dict()))
    return vae


def random_latents(batch: int, count: int, height: int, width: int) -> Tensor:
    return torch.randn((batch, 16, count, height, width), generator=torch.Generator().manual_seed(1))


def random_video(batch: int, frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand((batch, 3, frames, height, width), generator=generator) * 2 - 1


def assert_close(result: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert result.shape == expected.shape
    assert expected.std() > 0.05  # a degenerate reference would prove nothing
    assert (result - expected).abs().max().item() < tolerance


SHAPES = [  # base_dim, batch, latents, latent height, latent width
    pytest.param(8, 1, 9, 4, 6, id="chunk"),
    pytest.param(8, 2, 9, 6, 4, id="batch-2"),
    pytest.param(16, 1, 9, 6, 8, id="base-16"),
    pytest.param(8, 2, 1, 4, 4, id="one-frame"),
    pytest.param(8, 1, 2, 5, 3, id="odd-size"),
]


@pytest.mark.parametrize(("base_dim", "batch", "count", "height", "width"), SHAPES)
def test_decode_equals_diffusers(base_dim, batch, count, height, width):
    latents = random_latents(batch, count, height, width)
    expected = reference(base_dim).decode(latents).sample
    assert_close(ours(base_dim).decode(latents), expected)
    assert expected.abs().max() <= 1.0


@pytest.mark.parametrize(("base_dim", "batch", "count", "height", "width"), SHAPES)
def test_encode_equals_diffusers(base_dim, batch, count, height, width):
    video = random_video(batch, 4 * count - 3, 8 * height, 8 * width)
    expected = reference(base_dim).encode(video).latent_dist
    mean, std = ours(base_dim).encode(video)
    assert_close(mean, expected.mean)
    assert_close(std, expected.std)


def test_decode_clamps():
    latents = 5 * random_latents(1, 2, 4, 4)
    result = ours().decode(latents)
    assert result.max() == 1.0
    assert result.min() == -1.0


def test_encode_clamps_the_log_variance():
    state = {name: tensor.clone() for name, tensor in ours().state_dict().items()}
    state["conv1.bias"][16:24] += 100.0
    state["conv1.bias"][24:] -= 100.0
    vae = WanVAE(ours().config)
    vae.load_state_dict(state)
    _, std = vae.encode(random_video(1, 1, 16, 16))
    assert torch.allclose(std[:, :8], torch.tensor(10.0).exp().expand_as(std[:, :8]))
    assert torch.allclose(std[:, 8:], torch.tensor(-15.0).exp().expand_as(std[:, 8:]))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 20])
def test_every_pass_size_gives_the_same_result(size):
    latents, video = random_latents(2, 9, 4, 6), random_video(2, 33, 32, 48)
    assert_close(ours().decode(latents, latents_per_pass=size), ours().decode(latents, latents_per_pass=9))
    for cut, whole in zip(ours().encode(video, size), ours().encode(video, 9), strict=True):
        assert_close(cut, whole)


def test_bfloat16_is_as_close_as_the_reference():
    latents, video = random_latents(1, 9, 4, 6), random_video(1, 33, 32, 48)
    half = WanVAE(ours().config, dtype=torch.bfloat16)
    half.load_state_dict(ours().state_dict())
    half_reference = AutoencoderKLWan.from_config(reference().config).to(torch.bfloat16)
    half_reference.load_state_dict(reference().state_dict())

    decoded, mean = ours().decode(latents), ours().encode(video)[0]
    with torch.no_grad():
        reference_decoded = half_reference.decode(latents.bfloat16()).sample
        reference_mean = half_reference.encode(video.bfloat16()).latent_dist.mean
    assert half.decode(latents).dtype == torch.bfloat16
    assert (half.decode(latents) - decoded).abs().mean() < 1.3 * (reference_decoded - decoded).abs().mean()
    assert (half.encode(video)[0] - mean).abs().mean() < 1.3 * (reference_mean - mean).abs().mean()


def test_pass_size_bounds_memory_at_the_released_size():
    halved = WanVAE(dtype=torch.bfloat16, device="meta")
    assert halved.pass_size(1, 48, 80) >= 9  # a whole chunk
    full = WanVAE(dtype=torch.float32, device="meta")
    assert 1 <= full.pass_size(1, 48, 80) < 9
    assert full.pass_size(8, 480, 800) == 1


def test_normalise_equals_diffusers():
    config = reference().config
    mean = torch.tensor(config.latents_mean).view(1, 16, 1, 1, 1)
    std_inverse = 1.0 / torch.tensor(config.latents_std).view(1, 16, 1, 1, 1)
    latents = random_latents(2, 3, 4, 4)
    assert torch.equal(ours().normalise(latents), (latents - mean) * std_inverse)
    assert torch.equal(ours().denormalise(latents), latents / std_inverse + mean)


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (torch.zeros(3, 33, 16, 16), "shape"),
        (torch.zeros(1, 4, 33, 16, 16), "shape"),
        (torch.zeros(1, 3, 32, 16, 16), "32 frames"),
        (torch.zeros(1, 3, 33, 20, 16), "height 20"),
        (torch.zeros(1, 3, 0, 16, 16), "0 frames"),
    ],
)
def test_encode_refuses(video, words):
    with pytest.raises(HeliosError, match=words):
        ours().encode(video)


def test_decode_refuses():
    with pytest.raises(HeliosError, match="shape"):
        ours().decode(torch.zeros(1, 4, 9, 4, 4))
    with pytest.raises(HeliosError, match="shape"):
        ours().decode(torch.zeros(1, 16, 0, 4, 4))
    with pytest.raises(HeliosError, match="latents_per_pass is 0"):
        ours().decode(torch.zeros(1, 16, 1, 4, 4), latents_per_pass=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_res_blocks": 1},
        {"num_res_blocks": 3},
        {"dim_mult": [1, 2], "temperal_downsample": [True]},
        {"dim_mult": [1, 1, 2, 2, 4], "temperal_downsample": [True, False, True, False]},
    ],
)
def test_names_of_any_layout_load_and_return(options):
    with torch.device("meta"):
        other = AutoencoderKLWan(base_dim=8, **options)
    state = other.state_dict()
    native = vae_from_diffusers(state)
    vae = WanVAE(VAEConfig.from_diffusers(dict(other.config)), device="meta")
    vae.load_state_dict(native, assign=True)  # strict: names and shapes
    back = vae_to_diffusers(native)
    assert back.keys() == state.keys()
    assert all(back[name] is tensor for name, tensor in state.items())


def test_names_are_those_comfyui_detects():
    native = vae_from_diffusers(reference().state_dict())
    expected = {
        "encoder.conv1.weight": (8, 3, 3, 3, 3),
        "encoder.downsamples.3.shortcut.weight": (16, 8, 1, 1, 1),
        "encoder.downsamples.5.time_conv.weight": (16, 16, 3, 1, 1),
        "decoder.middle.0.residual.0.gamma": (32, 1, 1, 1),
        "decoder.middle.1.norm.gamma": (32, 1, 1),
        "decoder.upsamples.3.time_conv.weight": (64, 32, 3, 1, 1),
        "decoder.upsamples.14.residual.6.weight": (8, 8, 3, 3, 3),
        "decoder.head.0.gamma": (8, 1, 1, 1),
        "decoder.head.2.weight": (3, 8, 3, 3, 3),
        "conv1.weight": (32, 32, 1, 1, 1),
        "conv2.bias": (16,),
    }
    assert {name: tuple(native[name].shape) for name in expected} == expected


@pytest.mark.skipif(not RELEASED_KEYS.is_file(), reason="the list of released tensor names is not here")
def test_names_of_the_released_vae_load_and_return():
    shapes = json.loads(RELEASED_KEYS.read_text(encoding="utf-8"))["tensors"]
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    native = vae_from_diffusers(state)
    WanVAE(device="meta").load_state_dict(native, assign=True)
    assert vae_to_diffusers(native).keys() == state.keys()


def test_names_refuse_missing_and_unknown():
    state = dict(reference().state_dict())
    native = vae_from_diffusers(state)
    with pytest.raises(HeliosError, match=r"does not know \d+ .*conv1"):
        vae_from_diffusers(native)
    with pytest.raises(HeliosError, match=r"does not know \d+ "):
        vae_to_diffusers(state)
    with pytest.raises(HeliosError, match=r"is missing \d+ "):
        vae_from_diffusers({})
    del state["decoder.mid_block.resnets.1.conv2.bias"]
    with pytest.raises(HeliosError, match=r"is missing 1 .*mid_block\.resnets\.1\.conv2\.bias"):
        vae_from_diffusers(state)
    with pytest.raises(HeliosError, match=r"does not know 1 .*extra"):
        vae_to_diffusers({**native, "extra": torch.zeros(1)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    reference().save_pretrained(tmp_path)
    return tmp_path


def test_load_vae_equals_diffusers(folder):
    vae = load_vae(folder)
    latents = random_latents(1, 2, 4, 4)
    assert_close(vae.decode(latents), reference().decode(latents).sample)
    assert not vae.training
    assert load_vae(folder, dtype=torch.bfloat16).decode(latents).dtype == torch.bfloat16


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}))


def test_load_vae_refuses_bad_files(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HeliosError, match="complete safetensors"):
        load_vae(folder)
    weights.unlink()
    with pytest.raises(HeliosError, match="is missing"):
        load_vae(folder)
    weights.write_bytes(whole)
    (folder / "config.json").write_text("{")
    with pytest.raises(HeliosError, match="cannot be read"):
        load_vae(folder)
    with pytest.raises(HeliosError, match="is missing"):
        load_vae(folder / "nowhere")


def test_load_vae_refuses_another_network(folder):
    edit_config(folder, base_dim=16)
    with pytest.raises(HeliosError, match=r"does not fit a Wan 2.1 VAE: \d+ misshaped"):
        load_vae(folder)
    edit_config(folder, is_residual=True)
    with pytest.raises(HeliosError, match="is_residual=True"):
        load_vae(folder)
    edit_config(folder, is_residual=False, z_dim=48)
    with pytest.raises(HeliosError, match="latents_mean has 16 entries"):
        load_vae(folder)


def test_bfloat16_keeps_real_frames(tiny_folder):
    """Encoded and decoded in bfloat16 against float32: at least 40 dB, on a real clip."""
    if not CLIP.is_file():
        pytest.skip("needs the shared clip toy_2.mp4")
    frames = read_video(CLIP)[:33].permute(3, 0, 1, 2).float() / 127.5 - 1
    video = torch.nn.functional.interpolate(frames[None], size=(33, 64, 96), mode="trilinear")
    folder = tiny_folder("distilled")
    exact, half = load_vae(folder), load_vae(folder, dtype=torch.bfloat16)
    expected = exact.decode(exact.encode(video)[0])
    result = half.decode(half.encode(video)[0]).float()
    error = ((result - expected) / 2).square().mean()
    assert expected.std() > 0.05 and 10 * torch.log10(1 / error) >= 40
