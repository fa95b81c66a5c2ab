"""LoRA training: clips in, a file out that every loader reads as what was trained."""

import json
import os
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helios_training import cli, data, footage, lora, streamed, trainer
from safetensors.torch import load_file, save_file

from helios_core.checkpoint import load_transformer, open_transformer
from helios_core.checkpoint.lora import read_lora
from helios_core.checkpoint.source import CONFIG_KEY, VARIANT_KEY
from helios_core.checkpoint.streaming import stream_transformer
from helios_core.checkpoint.vae import load_vae
from helios_core.errors import HeliosError
from helios_core.samplers import SchedulerConfig

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64


def write_clip(path, frames, fps=24, size=(80, 64), seed=0):
    """A film of a moving gradient."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        for number in range(frames):
            wave = np.stack([np.sin((x + 3 * number + 40 * seed) / 9), np.cos(y / 11 + seed), np.sin((x + y) / 17)], -1)
            picture = ((wave + 1) * 127).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips that can be used, of two chunks and one, and three that cannot."""
    folder = tmp_path_factory.mktemp("clips")
    for name, frames in (("long", 70), ("short", 33), ("too-short", 20), ("uncaptioned", 33)):
        write_clip(folder / f"{name}.mp4", frames, seed=frames)
        if name != "uncaptioned":
            (folder / f"{name}.txt").write_text(f"A {name} wave rolls by.\n", encoding="utf-8")
    (folder / "damaged.mp4").write_bytes(b"no film")
    (folder / "damaged.txt").write_text("Nothing.", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def arguments(clips, folder, runs, steps):
    given = ["lora", str(clips), "--model", str(folder), "--folder", str(runs), "--device", "cpu"]
    sizes = ["--width", str(SIZE), "--height", str(SIZE), "--threads", "1", "--rank", "4", "--rate", "0.02"]
    return [*given, *sizes, "--steps", str(steps)]


def train(clips, folder, runs, *more, steps=3):
    return cli.main([*arguments(clips, folder, runs, steps), *more])


def test_captions_of_text_files_and_of_a_table(clips, tmp_path, capsys):
    found = footage.find_footage(clips)
    assert [(clip.path.name, clip.caption) for clip in found][1:] == [
        ("long.mp4", "A long wave rolls by."),
        ("short.mp4", "A short wave rolls by."),
        ("too-short.mp4", "A too-short wave rolls by."),
    ]
    assert "uncaptioned.mp4: it has no caption in uncaptioned.txt" in capsys.readouterr().err
    table = tmp_path / "clips.csv"
    table.write_text('file,caption\nlong.mp4,"A wave, rolling."\nshort.mp4,\n', encoding="utf-8-sig")
    for source in (table, tmp_path):
        assert footage.find_footage(source) == [footage.Footage(tmp_path / "long.mp4", "A wave, rolling.")]
        assert "short.mp4: a row has no file or no caption" in capsys.readouterr().err
    table.write_text("name,text\nlong.mp4,A wave\n", encoding="utf-8")
    with pytest.raises(HeliosError, match="has no columns file and caption"):
        footage.find_footage(table)


def test_a_folder_without_captions_is_refused_in_one_sentence(tmp_path, tiny_folder, capsys):
    write_clip(tmp_path / "clip.mp4", 33)
    assert train(tmp_path, tiny_folder("mid"), tmp_path / "runs") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {tmp_path} holds no clip with a caption; write a text file with a clip's name beside it, or a CSV "
        "with the columns file and caption."
    )


UNEVEN = [0.1 + (n + 0.4 * (n % 2)) / 30 for n in range(60)]


@pytest.mark.parametrize("times", [*([n / fps for n in range(80)] for fps in (60, 12, 24, 29.97)), UNEVEN])
def test_other_rates_take_the_frame_nearest_in_time(times):
    frames = [np.full(1, number) for number in range(len(times))]
    found = [int(frame[0]) for frame in footage.frames_at(zip(times, frames, strict=True))]
    targets = [times[0] + number / 24 for number in range(len(found))]
    distances = np.abs(np.array(times) - np.array(targets)[:, None])
    assert np.allclose(distances[range(len(found)), found], distances.min(1), atol=1e-9)
    # As long as the clip: the last frame is shown like the one before it.
    assert abs(len(found) / 24 - (2 * times[-1] - times[-2] - times[0])) <= 1 / 24


def test_chunks_are_the_films_frames_covered_and_cropped(clips):
    chunks = list(footage.read_chunks(clips / "long.mp4", SIZE, SIZE))
    assert [chunk.shape for chunk in chunks] == [(33, 3, SIZE, SIZE)] * 2
    with av.open(str(clips / "long.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    expected = torch.from_numpy(np.stack(frames[:66]))[:, :, 8:72].permute(0, 3, 1, 2) / 255  # 80 wide: 8 off each side
    assert (torch.cat(chunks) - expected).abs().max() <= 1 / 255
    half = list(footage.read_chunks(write_clip(clips / "fast.mov", 70, fps=48), SIZE, SIZE))
    assert len(half) == 1


def encoder(folder):
    return footage.Encoder(folder, SIZE, SIZE, torch.device("cpu"), torch.float32)


def test_latents_and_embeddings_are_made_once(clips, tiny_folder, runs, capsys, monkeypatch):
    folder = tiny_folder("mid")
    cache = footage.Cache(runs / "cache", encoder(folder))
    found = cache.clips(footage.find_footage(clips))
    told = capsys.readouterr().err
    assert "too-short.mp4: it is shorter than a chunk" in told
    assert "damaged.mp4" in told
    assert [len(x) for x in found.latents] == [2, 1]
    vae = load_vae(folder)
    (_, second) = footage.read_chunks(clips / "long.mp4", SIZE, SIZE)
    mean, _ = vae.encode(second.transpose(0, 1)[None] * 2 - 1)
    assert (found.latents[0][1] - vae.normalise(mean)[0]).abs().max() < 5e-3  # kept in half precision
    assert len(found.embeddings) == 5
    assert (found.embeddings[:, -1] == 0).all()

    def refuse(*_, **__):
        raise AssertionError("encoded twice")

    with monkeypatch.context() as patch:
        patch.setattr(footage, "encode_chunks", refuse)
        patch.setattr(footage, "load_text_encoder", refuse)
        again = cache.clips(footage.find_footage(clips))
    assert torch.equal(again.embeddings, found.embeddings)
    assert all(torch.equal(one, other) for one, other in zip(again.latents, found.latents, strict=True))
    assert again.captions == found.captions == [[2, 2], [3]]


def test_without_anchor_or_corruption_nothing_else_changes():
    latents = torch.randn(2, 3, 16, 9, 2, 2)
    drawn = data.Clips(latents, latents[:, 0, :, :1], [[1, 1, 1]] * 2, torch.zeros(2, 2, 4))

    def batch(**drops):
        return drawn.batch(trainer.StepRandom(0, 0), 12, data.Drops(exact=1.0, **drops))

    usual, without = batch(), batch(anchor=False)
    assert usual.anchor.any() and not without.anchor.any()
    assert torch.equal(usual.history, without.history) and torch.equal(usual.clean, without.clean)
    known = usual.history[usual.history.ne(0)]
    assert torch.isin(known, latents).all(), "exact"


def test_clips_of_equal_length_draw_the_numbers_they_drew():
    """Golden: what the batches of helios-small's training were before clips could differ in length."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(3, 5, 16, 9, 2, 2, generator=generator).half()
    stills = torch.randn(3, 16, 1, 2, 2, generator=generator).half()
    captions = [[3 * clip + chunk + 1 for chunk in range(5)] for clip in range(3)]
    drawn = data.Clips(latents, stills, captions, torch.zeros(1, 2, 4))
    for step, (numbers, sums) in enumerate(GOLDEN):
        batch = drawn.batch(trainer.StepRandom(0, step), 12, data.Drops())
        assert batch.captions == numbers
        found = [x.double().sum().item() for x in (batch.clean, batch.anchor, batch.history)]
        # Of half precision: what a processor without AVX draws rounds otherwise now and then.
        assert found == pytest.approx(sums, abs=1e-2)


GOLDEN = (
    ([11, 7, 3, 7, 7, 0, 4, 0, 10, 8, 10, 8], (-27.2925, -47.9195, -106.9848)),
    ([8, 7, 7, 7, 7, 0, 3, 9, 10, 3, 3, 5], (-8.0237, -36.0997, -1.9072)),
)


def inputs(transformer):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    text = torch.zeros(1, 512, transformer.config.text_dim)
    text[:, :20] = draw(1, 20, transformer.config.text_dim)
    history = draw(1, 16, 2, 8, 8), draw(1, 16, 2, 8, 8), draw(1, 16, 16, 8, 8)
    return draw(1, 16, 9, 8, 8), torch.tensor([700.0]), text, history


@torch.no_grad()
def predicted(transformer):
    latents, timestep, text, history = inputs(transformer)
    return transformer(latents, timestep, text, *history)


@pytest.fixture(scope="module", params=["base", "mid", "distilled"])
def trained(request, clips, tiny_folder, runs):
    """The released folder, the LoRA file and the velocity of the module that was trained."""
    folder, name = tiny_folder(request.param), f"of-{request.param}"
    assert train(clips, folder, runs, "--name", name) == 0
    source = open_transformer(folder)
    transformer = load_transformer(source)
    before = predicted(transformer)
    adapters = lora.Adapters(transformer, 4, 4.0)
    state = load_file(runs / name / trainer.STATE)
    adapters.load_state_dict({key: state[f"weight.{key}"] for key in adapters.state_dict()})
    adapters.attach(transformer)
    after = predicted(transformer)
    assert (after - before).abs().max() > 1e-3
    return folder, runs / name / "lora.safetensors", after


def test_our_reader_finds_what_was_trained(trained):
    folder, file, expected = trained
    transformer = load_transformer(open_transformer(folder))
    read = read_lora(file, {name: tuple(x.shape) for name, x in transformer.state_dict().items()})
    assert not read.unmatched
    assert read.count == 10 * len(transformer.blocks)
    with torch.no_grad():
        for name, (adapter,) in read.adapters.items():
            change = adapter["lora_up.weight"] @ adapter["lora_down.weight"]
            transformer.get_parameter(name).add_(change * adapter["alpha"] / len(adapter["lora_down.weight"]))
    torch.testing.assert_close(predicted(transformer), expected, atol=1e-5, rtol=1e-5)


def test_diffusers_finds_what_was_trained(trained):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    folder, file, expected = trained
    theirs = diffusers.HeliosTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": None}
    pipe = diffusers.HeliosPipeline(**parts, transformer=theirs)
    pipe.load_lora_weights(str(file))
    latents, timestep, text, (short, mid, long) = inputs(load_transformer(open_transformer(folder)))
    with torch.no_grad():
        found = theirs(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=text,
            indices_hidden_states=torch.arange(20, 29)[None],
            indices_latents_history_short=torch.tensor([[0, 19]]),
            indices_latents_history_mid=torch.arange(17, 19)[None],
            indices_latents_history_long=torch.arange(1, 17)[None],
            latents_history_short=short,
            latents_history_mid=mid,
            latents_history_long=long,
            return_dict=False,
        )[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_stopped_run_goes_on_bit_for_bit_and_with_its_own_settings_only(clips, tiny_folder, runs, capsys):
    folder = tiny_folder("mid")
    assert train(clips, folder, runs, "--name", "whole") == 0
    for _ in range(3):
        assert train(clips, folder, runs, "--name", "stopped", "--minutes", "0") == 0
    whole, stopped = (load_file(runs / name / trainer.STATE) for name in ("whole", "stopped"))
    assert json.loads((runs / "stopped" / trainer.LOG).read_text().splitlines()[-1])["step"] == 3
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert train(clips, folder, runs, "--name", "whole", "--alpha", "8") == 2
    assert "was begun with other alpha; give another --name" in capsys.readouterr().err


CHILD = """
import sys
from training import lora_run
from training.cli import main

shard = lora_run.shard_blocks

def checked(model, device):
    shard(model, device)
    for layer in ("self_attn.q", "cross_attn.v", "ffn.2"):
        weight = model.blocks[0].get_submodule(layer).weight
        assert 2 * weight.to_local().numel() == weight.numel()
    print("sharded")

lora_run.shard_blocks = checked
arguments = sys.argv[1:]
assert main([*arguments, "--name", "two"]) == 0
assert main([*arguments, "--name", "sharded", "--shard"]) == 0
"""


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / trainer.LOG).read_text().splitlines()]


def test_two_processes_sharded_or_not_train_like_one_with_twice_the_batch(clips, tiny_folder, runs):
    folder = tiny_folder("mid")
    assert train(clips, folder, runs, "--name", "one", "--batch", "2") == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children, pipe = [], subprocess.PIPE
    for rank in range(2):
        places = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **{name: str(value) for name, value in places.items()}}
        command = [sys.executable, "-c", CHILD, *arguments(clips, folder, runs, 3)]
        children.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
    told = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    assert all("sharded" in out for out, _ in told)
    states = {name: load_file(runs / name / trainer.STATE) for name in ("one", "two", "sharded")}
    for name in ("two", "sharded"):
        assert losses(runs / name) == pytest.approx(losses(runs / "one"), abs=1e-4)
        for key, mean_gradient in states["one"].items():
            if ".exp_avg." in key:
                torch.testing.assert_close(states[name][key], mean_gradient, atol=1e-5, rtol=1e-3)


def new_task(folder, targets=lora.DEFAULT_TARGETS, batch=1, offload=None):
    source = open_transformer(folder)
    transformer = load_transformer(source)
    if offload is not None:
        transformer = stream_transformer(source, offload=offload, kind=streamed.StreamedForTraining)
    adapters = lora.Adapters(transformer, 4, 4.0, targets)
    adapters.attach(transformer)
    generator = torch.Generator().manual_seed(2)
    latents = [torch.randn(n, 16, 9, 8, 8, generator=generator) for n in (2, 1)]
    stills = [torch.randn(16, 1, 8, 8, generator=generator) for _ in range(2)]
    embeddings = torch.randn(3, 6, transformer.config.text_dim, generator=generator)
    embeddings[:, 5:] = 0
    clips = data.Clips(latents, stills, [[1, 1], [2]], embeddings)
    return lora.LoraTask(
        transformer, adapters, clips, batch, source.variant, SchedulerConfig.from_dict(source.scheduler)
    )


@pytest.mark.parametrize("targets", [("ffn",), ("cross_attn.q",), ("cross_attn.k", "self_attn.o")])
def test_single_targets_get_gradients_and_the_model_none(tiny_folder, targets):
    task = new_task(tiny_folder("base"), targets)
    before = {name: x.clone() for name, x in task.stage.model.state_dict().items()}
    task.loss(0, trainer.StepRandom(0, 0))[0].backward()
    assert all(p.grad.abs().max() > 0 for p in task.module.up.values())
    assert all(p.grad is None for p in task.stage.model.parameters())
    assert all(torch.equal(x, before[name]) for name, x in task.stage.model.state_dict().items())


def test_checkpointing_changes_no_gradient(tiny_folder):
    found = []
    for checkpointed in (True, False):
        task = new_task(tiny_folder("mid"))
        for parameter in task.module.up.values():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        task.stage.checkpointed = checkpointed
        task.loss(0, trainer.StepRandom(0, 0))[0].backward()
        found.append([p.grad for p in task.module.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-4)


@pytest.fixture(scope="module")
def deep_file(tiny_folder, tmp_path_factory):
    """helios-tiny with five different blocks: more than there are buffers, and odd, so that each uses either."""
    source = open_transformer(tiny_folder("mid"))
    state = load_transformer(source).state_dict()
    generator = torch.Generator().manual_seed(0)
    for key in [name for name in state if name.startswith("blocks.0.")]:
        for index in range(2, 5):
            drawn = torch.randn(state[key].shape, generator=generator)
            state[key.replace("blocks.0.", f"blocks.{index}.")] = state[key] + 0.02 * drawn
    config = json.dumps(source.config.to_dict() | {"num_layers": 5})
    path = tmp_path_factory.mktemp("deep") / "deep.safetensors"
    save_file({key: x.contiguous() for key, x in state.items()}, path, {VARIANT_KEY: "mid", CONFIG_KEY: config})
    return path


@pytest.mark.parametrize("offload", ["disk", "cpu"])
def test_streamed_blocks_give_the_same_gradients(deep_file, offload):
    found = []
    for kept in (None, offload):
        task = new_task(deep_file, batch=2, offload=kept)
        for parameter in task.module.up.values():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        # Twice: in the second step the buffers hold what the first one's backward pass left.
        for step in range(2):
            loss, _ = task.loss(step, trainer.StepRandom(0, step))
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in task.module.parameters())])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert len(task.stage.model.blocks) == 5
    assert len(task.stage.model.stream.buffers) == 2
    task.stage.model.stream.close()


def test_a_lora_is_trained_from_streamed_blocks(clips, tiny_folder, runs):
    for name, more in (("kept", ()), ("streamed", ("--offload", "disk"))):
        assert train(clips, tiny_folder("distilled"), runs, "--name", name, *more, steps=2) == 0
    assert losses(runs / "streamed") == pytest.approx(losses(runs / "kept"), abs=1e-5)


def test_a_clip_is_learned_in_bfloat16_too(tiny_folder):
    task = new_task(tiny_folder("base"))
    task.stage.model.to(torch.bfloat16)
    loss, _ = task.loss(0, trainer.StepRandom(0, 0))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in task.module.parameters())


def test_an_unknown_target_and_a_wrong_size_are_refused(clips, tiny_folder, runs, capsys):
    with pytest.raises(HeliosError, match="target 'norm3' names no layer of a block; use self_attn"):
        lora.chosen_layers(["norm3"])
    assert train(clips, tiny_folder("mid"), runs, "--width", "80") == 2
    assert "width=80 is not a positive multiple of 64" in capsys.readouterr().err
