"""The transformer against diffusers' HeliosTransformer3DModel with the same random weights, float32."""

import pytest
import torch
from diffusers import HeliosTransformer3DModel

from helios_core.checkpoint import from_diffusers, to_diffusers
from helios_core.errors import HeliosError
from helios_core.networks.transformer import HeliosTransformer

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 3,
    "rope_dim": (8, 8, 8),
}
SIZES = [(9, 8, 16, 8, 16), (9, 8, 8, 16, 16), (9, 6, 10, 24, 40), (3, 2, 4, 8, 12)]


def pair(**changes):
    """Diffusers' model and ours with the same weights, none of which is at its special initial value."""
    torch.manual_seed(0)
    config = CONFIG | changes
    theirs = HeliosTransformer3DModel(**config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    ours = HeliosTransformer(**config)
    ours.load_state_dict(from_diffusers(theirs.state_dict()))
    return theirs, ours.eval()


def inputs(size, batch=1, text_dim=32):
    frames, h, w, full_h, full_w = size
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "latents": noise(batch, 16, frames, h, w),
        "timestep": torch.arange(batch) * 100 + 742,
        "text": noise(batch, 512, text_dim),
        "history_short": noise(batch, 16, 2, full_h, full_w),
        "history_mid": noise(batch, 16, 2, full_h, full_w),
        "history_long": noise(batch, 16, 16, full_h, full_w),
    }


def reference(model, latents, timestep, text, history_short, history_mid, history_long):
    positions = torch.arange(20 + latents.shape[2])[None]
    return model(
        hidden_states=latents,
        timestep=timestep,
        encoder_hidden_states=text,
        indices_hidden_states=positions[:, 20:],
        indices_latents_history_short=positions[:, [0, 19]],
        indices_latents_history_mid=positions[:, 17:19],
        indices_latents_history_long=positions[:, 1:17],
        latents_history_short=history_short,
        latents_history_mid=history_mid,
        latents_history_long=history_long,
        return_dict=False,
    )[0]


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"is_amplify_history": True},
        {"is_amplify_history": True, "history_scale_mode": "scalar"},
        {"zero_history_timestep": False, "guidance_cross_attn": False, "cross_attn_norm": False},
    ],
    ids=["released", "amplified", "amplified-scalar", "other-flags"],
)
def test_velocity_equals_reference(size, batch, changes):
    theirs, ours = pair(**changes)
    given = inputs(size, batch)
    expected = reference(theirs, **given)
    assert expected.std() > 0.1
    assert (ours(**given) - expected).abs().max() <= 2e-5


@torch.no_grad()
def test_without_history():
    theirs, ours = pair()
    given = inputs(SIZES[0])
    expected = theirs(given["latents"], given["timestep"], given["text"], return_dict=False)[0]
    assert (ours(given["latents"], given["timestep"], given["text"]) - expected).abs().max() <= 2e-5


@torch.no_grad()
def test_bfloat16_error_is_within_the_references_own():
    """Our bfloat16 run is as close to float32 as diffusers' bfloat16 run, with the same float32 parts."""
    theirs, ours = pair()
    given = inputs(SIZES[1])
    exact = reference(theirs, **given)
    half = {k: v if k == "timestep" else v.bfloat16() for k, v in given.items()}
    for name, parameter in theirs.named_parameters():
        if not any(part in name for part in HeliosTransformer3DModel._keep_in_fp32_modules):
            parameter.data = parameter.data.bfloat16()
    ours.load_state_dict(from_diffusers(theirs.state_dict()), assign=True)
    reference_error = (reference(theirs, **half).float() - exact).abs().mean()
    assert (ours(**half).float() - exact).abs().mean() <= 1.1 * reference_error


@torch.no_grad()
def test_prepared_inputs_equal_raw_ones():
    _, ours = pair()
    given = inputs(SIZES[1], batch=2)
    text = ours.prepare_text(given["text"])
    history = ours.prepare_history(given["history_short"], given["history_mid"], given["history_long"])
    assert torch.equal(ours(given["latents"], given["timestep"], text, history=history), ours(**given))


@torch.no_grad()
def test_batched_guidance_equals_separate_guidance():
    _, ours = pair()
    given = inputs(SIZES[1], batch=2)
    given["timestep"] = torch.tensor([385, 385])
    both = ours(**given)
    alone = [ours(**{k: v[i : i + 1] for k, v in given.items()}) for i in range(2)]
    guided = both[1:] + 5.0 * (both[:1] - both[1:])
    assert (guided - (alone[1] + 5.0 * (alone[0] - alone[1]))).abs().max() <= 1e-5


def test_modulation_is_never_expanded_per_token():
    """Two rows exist (history, noisy): no intermediate has the tokens x 6 x width of the reference's expansion."""
    _, ours = pair()
    sizes = []

    def record(_module, args, _output):
        context = args[1]
        sizes.append((context.history_modulation.shape, context.noisy_modulation.shape))

    for block in ours.blocks:
        block.register_forward_hook(record)
    with torch.no_grad():
        ours(**inputs(SIZES[0], batch=2))
    assert set(sizes) == {(torch.Size([1, 6, 48]), torch.Size([2, 6, 48]))}


def test_names_round_trip():
    theirs, ours = pair(is_amplify_history=True)
    state = theirs.state_dict()
    back = to_diffusers(from_diffusers(state))
    assert back.keys() == state.keys()
    assert all(back[key] is value for key, value in state.items())
    assert not any(key.startswith("head.") for key in ours.state_dict())


def test_full_configuration_has_the_released_tensors():
    with torch.device("meta"):
        ours, theirs = HeliosTransformer(), HeliosTransformer3DModel()
    shapes = {key: value.shape for key, value in to_diffusers(ours.state_dict()).items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == 14_312_427_584


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": torch.zeros(1, 16, 9, 7, 8)}, "latents has shape"),
        ({"latents": torch.zeros(1, 4, 9, 8, 8)}, "latents has shape"),
        ({"timestep": torch.zeros(3)}, "timestep has shape"),
        ({"history_mid": None}, "must be given together"),
        ({"history_long": torch.zeros(1, 16, 9, 8, 16)}, "history_long has shape"),
    ],
)
def test_bad_input_is_named(changes, message):
    _, ours = pair()
    with pytest.raises(HeliosError, match=message):
        ours(**(inputs(SIZES[0]) | changes))
