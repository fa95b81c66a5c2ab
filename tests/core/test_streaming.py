"""Offloaded transformers and text encoders: the same numbers out of two block buffers, and errors that surface."""

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helios_core.checkpoint import load_transformer, open_transformer, to_diffusers
from helios_core.checkpoint.source import CONFIG_KEY, VARIANT_KEY
from helios_core.checkpoint.streaming import stream as stream_module
from helios_core.checkpoint.streaming import stream_transformer
from helios_core.checkpoint.streaming.buffers import STAGING_BYTES, BlockLayout, Slot
from helios_core.checkpoint.streaming.stream import THREAD_NAME
from helios_core.checkpoint.text import load_text_encoder, load_tokenizer
from helios_core.commands.cli import main
from helios_core.commands.convert import convert
from helios_core.commands.tiny import TRANSFORMER_CONFIG
from helios_core.errors import HeliosError
from helios_core.networks.text import TextEncoder
from helios_core.networks.transformer import HeliosTransformer
from helios_core.pipeline import HeliosPipeline

# Odd and more than two: every block passes through either buffer.
BLOCKS = 5
MODES = ("disk", "cpu")


earlier_readers: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _own_readers():
    """A failed test's traceback keeps its pipeline alive, and so its thread: later tests do not count that one."""
    gc.collect()
    earlier_readers.update(readers())


@pytest.fixture(scope="module")
def deep_folder(tiny_folder, tmp_path_factory):
    """helios-tiny with five different blocks, in the released layout: two shards and an index."""
    folder = tmp_path_factory.mktemp("deep") / "helios-deep"
    shutil.copytree(tiny_folder("distilled"), folder)
    parts = folder / "transformer"
    state = {}
    for file in sorted(parts.glob("*.safetensors")):
        state |= load_file(file)
        file.unlink()
    generator = torch.Generator().manual_seed(0)
    for key, value in list(state.items()):
        if key.startswith("blocks.0."):
            for index in range(2, BLOCKS):
                change = 0.02 * torch.randn(value.shape, generator=generator)
                state[key.replace("blocks.0.", f"blocks.{index}.")] = value + change
    names, weight_map = list(state), {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"diffusion_pytorch_model-{number + 1:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, parts / file)
        weight_map |= dict.fromkeys(part, file)
    (parts / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (parts / "config.json").write_text(json.dumps(TRANSFORMER_CONFIG | {"num_layers": BLOCKS}))
    return folder


@pytest.fixture(scope="module")
def files(deep_folder, tmp_path_factory):
    """One transformer in every form: name -> (path, type to run in)."""
    base = tmp_path_factory.mktemp("files")
    found = {"folder": (deep_folder, torch.float32), "folder in bf16": (deep_folder, torch.bfloat16)}
    for dtype in ("bf16", "fp8"):
        file = convert(deep_folder, base / f"{dtype}.safetensors", dtype, keep_blocks=1, show_progress=False)
        found[dtype] = (file, torch.bfloat16)
    found["bf16 in fp32"] = (found["bf16"][0], torch.float32)
    found["fp8 in fp32"] = (found["fp8"][0], torch.float32)
    state = to_diffusers(load_transformer(open_transformer(deep_folder)).state_dict())
    metadata = {VARIANT_KEY: "distilled", CONFIG_KEY: json.dumps(TRANSFORMER_CONFIG | {"num_layers": BLOCKS})}
    save_file({f"transformer.{key}": value.half() for key, value in state.items()}, base / "half.safetensors", metadata)
    found["fp16, diffusers names, prefix"] = (base / "half.safetensors", torch.float32)
    return found


def opened(path, dtype, folder, offload=None, device="cpu"):
    """A pipeline of any transformer file, with the folder's VAE and text encoder."""
    parts = {} if path.is_dir() else {"vae": folder, "text_encoder": folder}
    return HeliosPipeline.from_pretrained(path, dtype, device, offload=offload, **parts)


def take(pipeline, **changes):
    """Two chunks, each with a prompt of its own, with guidance."""
    request = {
        "prompt_schedule": [(0, "a red boat"), (1, "snow on a forest")], "blend": 1, "negative_prompt": "blurry",
        "guidance_scale": 3.0, "height": 64, "width": 64, "num_frames": 66,
        "pyramid_num_inference_steps_list": [1, 1, 1], "is_amplify_first_chunk": False,
        "generator": torch.Generator().manual_seed(3), "output_type": "latent",
    }  # fmt: skip
    return pipeline(**request | changes)


def readers():
    found = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]
    return [thread for thread in found if thread not in earlier_readers]


def no_reader_within(seconds=10.0):
    deadline = time.monotonic() + seconds
    while readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not readers()


def inputs(config, dtype=torch.float32, device="cpu", size=8, history=True, tokens=512):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 16, 9, size, size), (1, tokens, config.text_dim)]
    shapes += [(1, 16, n, size, size) for n in (2, 2, 16)] if history else []
    latents, text, *context = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return latents, torch.tensor([500.0], device=device), text, *context


# --- the same take -------------------------------------------------------------------------------------------

LAYOUTS = ("folder", "folder in bf16", "bf16", "bf16 in fp32", "fp8", "fp8 in fp32", "fp16, diffusers names, prefix")


@pytest.fixture(scope="module")
def expected(files, deep_folder):
    made = {}

    def get(layout):
        if layout not in made:
            made[layout] = take(opened(*files[layout], deep_folder))
        return made[layout]

    return get


@pytest.mark.parametrize(
    ("mode", "layout"),
    [("disk", layout) for layout in LAYOUTS] + [("cpu", layout) for layout in ("folder", "bf16 in fp32", "fp8")],
)
def test_take_is_the_same_without_the_blocks_in_memory(files, deep_folder, expected, mode, layout):
    pipeline = opened(*files[layout], deep_folder, mode)
    assert all(parameter.is_meta for parameter in pipeline.transformer.blocks.parameters())
    assert torch.equal(take(pipeline).latents, expected(layout).latents)


def test_image_to_video_is_the_same(files, deep_folder):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    request = {"image": image, "num_frames": 33, "guidance_scale": 1.0, "output_type": "uint8"}
    result, expected = (take(opened(*files["bf16"], deep_folder, mode), **request) for mode in ("disk", None))
    assert torch.equal(result.latents, expected.latents)
    # The offloaded VAE decodes one latent per pass: a sum in another order may round to the next of 256 levels.
    assert (result.frames.int() - expected.frames.int()).abs().max() <= 1


def test_blocks_differ_so_that_a_stale_buffer_would_show(files):
    blocks = load_transformer(open_transformer(files["folder"][0])).blocks
    weights = [block.ffn[0].weight for block in blocks]
    assert all(not torch.equal(weights[i], weights[j]) for i in range(BLOCKS) for j in range(i))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_text_encoder_placed_or_streamed_equals_transformers(deep_folder, dtype):
    own = transformers.UMT5EncoderModel.from_pretrained(deep_folder / "text_encoder", dtype=dtype)
    expected = TextEncoder(own.eval(), load_tokenizer(deep_folder))
    streamed = load_text_encoder(deep_folder, dtype, streamed=True)
    prompts = ["a red boat on a quiet lake", ""]
    assert torch.equal(load_text_encoder(deep_folder, dtype).encode(prompts), expected.encode(prompts))
    for _ in range(2):
        result = streamed.encode(prompts)
        assert result.dtype == dtype and torch.equal(result, expected.encode(prompts))
        assert not readers(), "the thread lives for one encoding"


def test_text_encoder_with_a_missing_tensor_is_refused(deep_folder, tmp_path):
    shutil.copytree(deep_folder, tmp_path / "cut")
    file = tmp_path / "cut" / "text_encoder" / "model.safetensors"
    state = load_file(file)
    del state["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(HeliosError, match=r"1 missing \(encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight\)"):
        load_text_encoder(tmp_path / "cut", streamed=True)


# --- two buffers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_two_buffers_serve_all_blocks(files, mode, monkeypatch):
    made = []

    class Counted(Slot):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self.buffer)

    monkeypatch.setattr(stream_module, "Slot", Counted)
    path, dtype = files["bf16"]
    model = stream_transformer(open_transformer(path), dtype, offload=mode)
    used, block = [], model.stream.block

    @contextmanager
    def watched(*arguments, **options):
        with block(*arguments, **options) as found:
            (buffer,) = {parameter.untyped_storage().data_ptr() for parameter in found.parameters()}
            used.append(buffer)
            yield found

    monkeypatch.setattr(model.stream, "block", watched)
    with torch.no_grad():
        for _ in range(3):
            model(*inputs(model.config, dtype))
    assert len(used) == 3 * 2 * BLOCKS, "each forward prepares a prompt and runs every block"
    assert len(made) == 2 and set(used) == {buffer.data_ptr() for buffer in made}
    passes = [used[first : first + BLOCKS] for first in range(0, len(used), BLOCKS)]
    assert all(one != other for blocks in passes for one, other in pairwise(blocks)), "they take turns"
    assert sum(buffer.nbytes for buffer in made) == 2 * BlockLayout.of(model.blocks[0], dtype).nbytes


@pytest.mark.parametrize(
    ("layout", "bytes_per_number"), [("folder in bf16", 2), ("bf16 in fp32", 2), ("bf16", 2), ("fp8", 1.5)]
)
def test_host_copies_have_the_narrower_type(files, layout, bytes_per_number):
    path, dtype = files[layout]
    model = stream_transformer(open_transformer(path), dtype, offload="cpu")
    numbers = sum(parameter.numel() for parameter in model.blocks.parameters())
    # fp8 keeps the first and last block in bf16; every parameter is aligned to 256 bytes.
    assert numbers * bytes_per_number * 0.75 < model.stream._source.nbytes < numbers * bytes_per_number * 1.35


def test_blocks_may_be_asked_for_in_any_order(files):
    path, dtype = files["folder"]
    model = stream_transformer(open_transformer(path), dtype)
    blocks = load_transformer(open_transformer(path), dtype).blocks
    for index in (3, 3, 0, 4, 0, 1, 2, 2, 4):
        with model.stream.block(index) as block:
            for name, parameter in blocks[index].named_parameters():
                assert torch.equal(block.get_parameter(name), parameter), (index, name)


# --- the thread ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut short", "deleted"])
def test_a_file_that_breaks_in_the_middle_of_a_take_is_one_sentence(files, deep_folder, tmp_path, fault):
    file = tmp_path / "model.safetensors"
    shutil.copy(files["bf16"][0], file)
    pipeline = opened(file, torch.float32, deep_folder, "disk")

    def breaks(chunk):
        def on_step(*_):
            if fault == "deleted":
                file.unlink(missing_ok=True)
            else:
                os.truncate(file, file.stat().st_size // 3)

        return on_step

    expected = "has become shorter while it was in use" if fault == "cut short" else "can no longer be read"
    with pytest.raises(HeliosError, match=expected) as told:
        take(pipeline, on_step=breaks)
    assert "model.safetensors" in str(told.value) and "\n" not in str(told.value)
    assert not readers(), "the thread ends with the error"
    shutil.copy(files["bf16"][0], file)
    assert take(pipeline).latents.isfinite().all(), "and starts again when the file is back"


def test_close_ends_the_thread_and_the_next_call_starts_it(files, deep_folder):
    pipeline = opened(*files["bf16"], deep_folder, "disk")
    assert not readers(), "nothing runs before the first block"
    first = take(pipeline)
    assert len(readers()) == 1 and len(pipeline.transformer.stream.buffers) == 2
    take(pipeline, num_frames=33, guidance_scale=1.0, output_type="uint8")
    assert not readers() and not pipeline.transformer.stream.buffers, "the VAE gets their memory"
    pipeline.close()
    assert not readers() and not pipeline.transformer.stream.buffers
    assert torch.equal(take(pipeline).latents, first.latents)
    pipeline.close()
    pipeline.close()
    opened(*files["bf16"], deep_folder).close()


@pytest.mark.parametrize("mode", MODES)
def test_a_dropped_pipeline_takes_its_thread_along(files, deep_folder, mode):
    pipeline = opened(*files["bf16"], deep_folder, mode)
    take(pipeline, num_frames=33)
    assert len(readers()) == 1
    del pipeline
    gc.collect()
    assert no_reader_within()


# --- refusals and the command line ---------------------------------------------------------------------------


def test_unknown_mode_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(HeliosError, match=r"offload='gpu' is unknown; use 'disk', 'cpu' or None"):
        HeliosPipeline.from_pretrained(tmp_path / "absent", offload="gpu")


def test_more_than_the_hosts_memory_is_refused(files, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 10)
    with pytest.raises(HeliosError, match=r"of host memory .* has 0\.0 GB; use offload='disk'"):
        stream_transformer(open_transformer(files["bf16"][0]), offload="cpu")


def test_command_line(deep_folder, tmp_path, capsys):
    arguments = ["generate", "--model", str(deep_folder), "--prompt", "a boat", "--seconds", "1", "--width", "64"]
    arguments += ["--height", "64", "--steps", "1", "1", "1", "--device", "cpu", "--output"]
    sizes = {}
    for mode in (None, *MODES):
        clip = tmp_path / f"{mode}.mp4"
        assert main([*arguments, str(clip), *([] if mode is None else ["--offload", mode])]) == 0
        sizes[mode] = clip.stat().st_size
    assert sizes["disk"] == sizes["cpu"]
    # One level of one pixel may differ (the VAE's passes), which moves few bytes of the file.
    assert abs(sizes[None] - sizes["disk"]) <= 0.01 * sizes[None]
    with pytest.raises(SystemExit):
        main([*arguments, str(tmp_path / "no.mp4"), "--offload", "gpu"])
    assert "--offload" in capsys.readouterr().err


# --- memory --------------------------------------------------------------------------------------------------

WIDE_BLOCKS = 4
MEASURE = """
import json, sys
from pathlib import Path
import torch
from helios_core.checkpoint import open_transformer
from helios_core.checkpoint.streaming import stream_transformer

def peak():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(1)
before = peak()
model = stream_transformer(open_transformer(sys.argv[1], "base"), torch.bfloat16, offload="disk")
with torch.no_grad():
    latents, text = torch.zeros(1, 16, 1, 2, 2).bfloat16(), torch.zeros(1, 8, 4096).bfloat16()
    assert model(latents, torch.tensor([500.0]), text).isfinite().all()
resident = sum(p.nbytes for name, p in model.named_parameters() if not name.startswith("blocks."))
buffers = sum(buffer.nbytes for buffer in model.stream.buffers)
print(json.dumps({"grown": peak() - before, "resident": resident, "buffers": buffers}))
"""


def sparse_model(path, blocks):
    """A complete bf16 file of zeros at the released width that takes no space on disk; returns its size."""
    with torch.device("meta"):
        model = HeliosTransformer(num_layers=blocks)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    header, position = {}, 0
    for key, shape in shapes.items():
        end = position + 2 * shape.numel()
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + position)
    return path.stat().st_size


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_host_memory_does_not_grow_with_the_model(tmp_path):
    """Four blocks of the released width in a process of its own: two buffers, staging, and what is resident."""
    size = sparse_model(tmp_path / "wide.safetensors", WIDE_BLOCKS)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "wide.safetensors")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(f"file {size / 1e9:.2f} GB, {told}")
    assert 1.3e9 < told["buffers"] < 1.45e9, "two blocks of 703 MB"
    allowed = told["buffers"] + told["resident"] + 2 * STAGING_BYTES + (150 << 20)
    assert told["grown"] <= allowed < size - told["buffers"] / 2


# --- on a GPU ------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_take_is_the_same_on_cuda(files, deep_folder, mode, layout):
    expected = take(opened(*files[layout], deep_folder, device="cuda"))
    pipeline = opened(*files[layout], deep_folder, mode, "cuda")
    assert torch.equal(take(pipeline).latents, expected.latents)
    assert {parameter.device.type for parameter in pipeline.vae.parameters()} == {"cpu"}


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_real_width_on_cuda_in_the_memory_of_two_blocks(tmp_path, mode, stored):
    """Six blocks of the released width: bit-equal over several steps, and peak VRAM of two blocks and activations."""
    blocks = 6
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = HeliosTransformer(num_layers=blocks, dtype=torch.bfloat16)
    file = tmp_path / "wide.safetensors"
    save_file({key: value.to("cpu", stored) for key, value in model.state_dict().items()}, file)
    del model
    source = open_transformer(file, "base")
    call = inputs(source.config, torch.bfloat16, "cuda", size=32)

    def run(load):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        transformer = load()
        with torch.no_grad():
            results = [transformer(*call).cpu() for _ in range(3)]
        torch.cuda.synchronize()
        return results, torch.cuda.max_memory_allocated() - before, transformer

    expected, whole_peak, whole = run(lambda: load_transformer(source, torch.bfloat16, "cuda"))
    weights = sum(parameter.nbytes for parameter in whole.parameters())
    resident = sum(p.nbytes for name, p in whole.named_parameters() if not name.startswith("blocks."))
    activations = whole_peak - weights
    del whole
    results, peak, streamed = run(lambda: stream_transformer(source, torch.bfloat16, "cuda", mode))
    two_blocks = sum(buffer.nbytes for buffer in streamed.stream.buffers)
    streamed.stream.close()
    assert all(torch.equal(result, one) for result, one in zip(results, expected, strict=True))
    # Pieces that are converted on the device pass through memory of their own.
    assert peak <= resident + two_blocks + activations + 8 * STAGING_BYTES
    assert peak < whole_peak - (blocks - 3) * two_blocks / 2
