"""Options for speed: kernels that agree with plain operators, graphs that are not made again, 8-bit products."""

import pytest
import torch
from torch.nn import functional as F

from helios_core.checkpoint import load_transformer, open_transformer
from helios_core.checkpoint.options import check_speed_options
from helios_core.errors import HeliosError
from helios_core.networks.transformer import HeliosTransformer, kernels
from helios_core.networks.transformer.fp8 import Fp8Linear, check_device, narrowed, use_fp8
from helios_core.pipeline import HeliosPipeline

CONFIG = {"num_attention_heads": 4, "text_dim": 32, "ffn_dim": 1024, "num_layers": 3}
CLIP = {
    "prompt": "a boat",
    "width": 64,
    "height": 64,
    "num_frames": 99,
    "pyramid_num_inference_steps_list": [1, 1, 1],
    "is_amplify_first_chunk": False,
    "output_type": "latent",
}


def model(device="cpu", dtype=None, **changes):
    torch.manual_seed(0)
    made = HeliosTransformer(**CONFIG | changes).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.to(device, dtype)


def inputs(batch=1, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = [(9, 8, 16), (2, 8, 16), (2, 8, 16), (16, 8, 16)]
    latents, short, mid, long = (
        torch.randn(batch, 16, *shape, generator=generator).to(device, dtype) for shape in shapes
    )
    text = torch.randn(batch, 512, 32, generator=generator).to(device, dtype)
    return latents, torch.full((batch,), 500, device=device), text, short, mid, long


def plain(made, given):
    """The forward by out-of-place operators, as where autograd records."""
    made.requires_grad_(True)
    try:
        with torch.enable_grad():
            return made(*given).detach()
    finally:
        made.requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"is_amplify_history": True}, {"cross_attn_norm": False}])
def test_in_place_kernels_equal_plain_operators(batch, changes):
    made, given = model(**changes), inputs(batch)
    expected = plain(made, given)
    assert (made(*given) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_kitchen_kernels_equal_plain_operators(monkeypatch):
    kitchen = pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is not installed")
    made, given = model(), inputs()
    expected = plain(made, given)
    # On a CPU its eager backend runs: what is tested is the way our tensors reach it.
    monkeypatch.setattr(kernels, "_kitchen_for", lambda _: kitchen)
    calls = []
    rope = kitchen.apply_rope1_
    monkeypatch.setattr(kitchen, "apply_rope1_", lambda *a: calls.append(a) or rope(*a))
    assert (made(*given) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert len(calls) == 2 * CONFIG["num_layers"]


def test_forward_leaves_its_inputs_alone():
    made, given = model(), inputs()
    copies = [x.clone() for x in given]
    with torch.no_grad():
        text, history = made.prepare_text(given[2]), made.prepare_history(*given[3:])
        tokens, keys = history.tokens.clone(), text.keys_values[0][0].clone()
        first = made(*given[:2], text, history=history)
        assert torch.equal(made(*given[:2], text, history=history), first)
    assert all(torch.equal(x, copy) for x, copy in zip(given, copies, strict=True))
    assert torch.equal(history.tokens, tokens) and torch.equal(text.keys_values[0][0], keys)


def test_blocks_are_compiled_once_for_a_whole_chain(tiny_folder):
    import torch._dynamo as dynamo

    pipeline = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    expected = pipeline(**CLIP).latents
    dynamo.reset()
    # The tracing is what may be repeated; the code generator behind it has no part in that.
    pipeline.transformer.compile_blocks(backend="eager", fullgraph=True)
    graphs, latents = [], []
    for chunk in pipeline.stream(**CLIP):
        graphs.append(dynamo.utils.counters["stats"]["unique_graphs"])
        latents.append(chunk.latents)
    assert graphs[0] > 0 and len(set(graphs)) == 1
    assert not dynamo.utils.counters["graph_break"]
    assert (torch.cat(latents, dim=2) - expected).abs().max() <= 1e-4 * expected.std()
    dynamo.reset()


def test_recorded_forward_follows_prompts_history_and_sizes(tiny_folder):
    pipeline = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    rows = {"prompt": None, "prompt_schedule": [(0, "a boat"), (2, "a storm")], "num_frames": 132}
    expected = pipeline(**CLIP | rows).latents
    recorded = []

    def record(run, pool):
        """Like a CUDA graph: the same memory in, the same memory out."""
        out = run()
        recorded.append(out.shape)
        return lambda: out.copy_(run()), out

    pipeline.transformer.use_cuda_graphs(record)
    assert torch.equal(pipeline(**CLIP | rows).latents, expected)
    assert len(recorded) == len(set(recorded)) == 3, "one per pyramid stage"
    # Two prompts in turn, as with guidance; their steps overlap in nothing.
    guided = {"guidance_scale": 3.0, "negative_prompt": "rain"}
    again = pipeline(**CLIP | guided).latents
    assert len(recorded) == 3
    pipeline.transformer._graphed = None
    assert torch.equal(pipeline(**CLIP | guided).latents, again)


def test_fp8_product_is_that_of_the_rounded_numbers():
    linear, x = torch.nn.Linear(64, 48), torch.randn(2, 5, 64)
    layer = Fp8Linear(linear)
    layer.load_state_dict(narrowed(linear.weight) | {"bias": linear.bias})
    weight = layer.weight.float() * layer.weight_scale
    scale = x.abs().max() / 448
    rounded = (x / scale).to(torch.float8_e4m3fn).float() * scale
    # The result leaves the product in bfloat16.
    assert torch.allclose(layer(x), F.linear(rounded, weight) + linear.bias, rtol=2e-2, atol=2e-2)
    assert (layer(torch.zeros(1, 64)) - linear.bias).abs().max() == 0
    assert (layer(x) - linear(x)).abs().mean() <= 0.06 * linear(x).abs().mean()


def test_fp8_leaves_the_outer_blocks_exact():
    made = model(num_layers=8, num_attention_heads=1, ffn_dim=256)
    replaced = use_fp8(made)
    assert {name.split(".")[1] for name in replaced} == {"3", "4"}
    assert len(replaced) == 2 * 10
    assert not any("norm" in name or "modulation" in name for name in replaced)


def test_fp8_error_is_small():
    """On random weights: 3 exact blocks, 1 in fp8, 3 exact."""
    # A CPU's 8-bit product is slow.
    small = {"num_layers": 7, "num_attention_heads": 1, "ffn_dim": 128, "text_dim": 32}
    exact = model(**small)
    narrow = HeliosTransformer(**CONFIG | small).eval().requires_grad_(False)
    state = exact.state_dict()
    for layer in use_fp8(narrow):
        content = narrowed(state.pop(f"{layer}.weight"))
        state |= {f"{layer}.{name}": value for name, value in content.items()}
    narrow.load_state_dict(state)
    given = inputs()
    expected = exact(*given)
    error = (narrow(*given) - expected).abs().mean() / expected.abs().mean()
    assert 1e-4 < error < 0.03


def test_fp8_file_keeps_its_numbers(tmp_path, tiny_folder):
    from helios_core.commands.convert import convert

    path = tmp_path / "fp8.safetensors"
    convert(tiny_folder("distilled"), path, "fp8", keep_blocks=0, show_progress=False)
    source = open_transformer(path)
    state = source.state_dict()
    loaded = load_transformer(source, torch.bfloat16, fp8_matmul=True)
    narrow = {name: layer for name, layer in loaded.named_modules() if isinstance(layer, Fp8Linear)}
    # helios-tiny has fewer blocks than stay exact.
    assert not narrow and all(p.dtype != torch.float8_e4m3fn for p in loaded.parameters())
    from helios_core.checkpoint.load import _placed_fp8
    from helios_core.checkpoint.quantised import decoders

    key = "blocks.0.ffn.0.weight"
    placed = _placed_fp8(key, state[key], "cpu", decoders(state, source.metadata, path)[key])
    assert torch.equal(placed[key].float(), state[key].float()) and placed[f"{key}_scale"] == state[f"{key}_scale"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fp8_matmul": True}, "fp8_matmul=True does not work with offload='disk'"),
        ({"compile": True}, "compile=True does not work with offload='disk'"),
    ],
)
def test_refuses_options_that_exclude_each_other(options, message):
    with pytest.raises(HeliosError, match=message):
        check_speed_options("disk", options, "cpu")


def test_refuses_graphs_without_cuda():
    with pytest.raises(HeliosError, match="cuda_graphs=True needs a CUDA device, not device='cpu'"):
        check_speed_options(None, {"cuda_graphs": True}, "cpu")


def test_refuses_fp8_on_old_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 6))
    with pytest.raises(HeliosError, match=r"capability 8\.9 or newer, cuda has 8\.6"):
        check_device("cuda")
    with pytest.raises(HeliosError, match="mps has none"):
        check_device("mps")
    check_device("cpu")


@pytest.mark.gpu
def test_gpu_kernels_equal_plain_operators():
    made = model()
    given = inputs()
    exact = plain(made, given)
    reference = plain(model("cuda", torch.bfloat16), inputs(1, "cuda", torch.bfloat16)).float().cpu()
    half = model("cuda", torch.bfloat16)(*inputs(1, "cuda", torch.bfloat16)).float().cpu()
    assert (half - exact).abs().mean() <= 1.2 * (reference - exact).abs().mean()


@pytest.mark.gpu
def test_gpu_chunk_never_makes_the_host_wait(tiny_folder):
    pipeline = HeliosPipeline.from_pretrained(tiny_folder("distilled"), torch.bfloat16, "cuda")
    generator = torch.Generator().manual_seed(0)
    waits = []

    def on_step(_chunk):
        # From the first step to the last of every chunk; what frames need of the host comes after.
        def report(step):
            last = step.step == step.total
            torch.cuda.set_sync_debug_mode("default" if last else "error")
            waits.append(last)

        return report

    try:
        pipeline(**CLIP, generator=generator, on_step=on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits.count(True) == 3


@pytest.mark.gpu
def test_gpu_fp8_matmul(tiny_folder):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no 8-bit products")
    linear = torch.nn.Linear(64, 48).to("cuda", torch.bfloat16)
    x = torch.randn(7, 64, device="cuda", dtype=torch.bfloat16)
    layer = Fp8Linear(linear).to("cuda")
    layer.load_state_dict(narrowed(linear.weight) | {"bias": linear.bias})
    assert (layer(x) - linear(x)).abs().mean() <= 0.06 * linear(x).abs().mean()


@pytest.mark.gpu
def test_gpu_graphs_give_the_same_video(tiny_folder):
    folder = tiny_folder("distilled")
    expected = HeliosPipeline.from_pretrained(folder, torch.bfloat16, "cuda")(**CLIP).latents
    graphed = HeliosPipeline.from_pretrained(folder, torch.bfloat16, "cuda", cuda_graphs=True)
    for _ in range(2):
        assert torch.equal(graphed(**CLIP).latents, expected)
    # Another size needs other memory.
    graphed(**CLIP | {"width": 128})
    assert torch.equal(graphed(**CLIP).latents, expected)
