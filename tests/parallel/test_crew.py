"""Several processes that make one film: the same latents, the bytes that the formula says, and ends without a hang."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import helios_parallel_child as child
import pytest
import torch
from helios_benchmarks.scaling import forward_bytes, tokens
from safetensors.torch import save_file

from helios_core.checkpoint import to_diffusers
from helios_core.checkpoint.options import LoadOptions
from helios_core.commands import cli
from helios_core.commands.tiny import TRANSFORMER_CONFIG
from helios_core.errors import HeliosError
from helios_core.networks.parallel.team import Team
from helios_core.networks.transformer import HeliosTransformer, TransformerConfig
from helios_core.networks.transformer.ulysses import Ulysses
from helios_core.pipeline import HeliosPipeline
from helios_core.take.store import ChunkStore
from helios_core.video.reader import read_video

ROOT = Path(__file__).resolve().parents[2]
# Five heads, which neither 2 nor 4 divides.
CONFIG = {**TRANSFORMER_CONFIG, "num_attention_heads": 5, "is_amplify_history": True}
TRAFFIC = [{"batch": 2, **child.ODD}, {"batch": 1, **child.WIDE}]
HANG_SECONDS = 600  # on a machine with much else to do


def write_model(released: Path, folder: Path, config: dict[str, Any]) -> None:
    """``released`` with another transformer, of random weights."""
    shutil.copytree(released, folder, ignore=shutil.ignore_patterns("diffusion_pytorch_model*.json"))
    for file in (folder / "transformer").glob("*.safetensors"):
        file.unlink()
    torch.manual_seed(3)
    network = HeliosTransformer(**TransformerConfig.from_dict(config).to_dict())
    state = {
        key: (tensor + 0.02 * torch.randn_like(tensor)).contiguous()
        for key, tensor in to_diffusers(network.state_dict()).items()
    }
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def models(tiny_folder, tmp_path_factory) -> Path:
    """A folder with a model of each variant, and one whose transformer has a single head."""
    folder = tmp_path_factory.mktemp("models")
    for variant in ("base", "mid", "distilled"):
        write_model(tiny_folder(variant), folder / variant, CONFIG)
    write_model(tiny_folder("distilled"), folder / "one-head", {**CONFIG, "num_attention_heads": 1})
    # Sides that 8-bit products take, and one block between those that stay exact.
    write_model(tiny_folder("distilled"), folder / "deep", {**CONFIG, "num_attention_heads": 4, "num_layers": 7})
    return folder


@pytest.fixture(scope="module")
def alone(models) -> dict[str, torch.Tensor]:
    """Every film's latents, as one process makes it."""
    pipelines = {variant: HeliosPipeline.from_pretrained(models / variant) for variant in ("base", "mid", "distilled")}
    return {name: child.made(pipelines[variant], name) for name, (variant, _) in child.FILMS.items()}


def spawn(processes: int, *steps: Sequence[Any]) -> list[subprocess.CompletedProcess]:
    """Runs the child's functions ``steps``, with their arguments, in several processes at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        places = {"RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        # As many threads as here: some of what is compared is equal bit for bit.
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **threads}
        environment |= {name: str(value) for name, value in places.items()}
        command = [sys.executable, str(Path(child.__file__)), json.dumps(steps, default=str)]
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
    try:
        told = [process.communicate(timeout=HANG_SECONDS) for process in children]
    finally:
        for process in children:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, out, err)
        for process, (out, err) in zip(children, told, strict=True)
    ]


def task(name: str, films: Sequence[str], **options: Any) -> dict[str, Any]:
    return {"name": name, "films": list(films), "options": options}


def short_film(models: Path, folder: Path) -> list[str]:
    film = ["--model", models / "distilled", "--prompt", "a boat", "--width", 64, "--height", 64, "--steps", 1, 1, 1]
    return ["generate", *map(str, [*film, "--seconds", 2, "--fps", 33, "--output", folder / "film.mp4"])]


GUIDED = ("mid-t2v", "mid-i2v", "base-t2v", "base-v2v")
TASKS = {
    2: [
        task("", child.FILMS, context_parallel=2),
        task("disk ", ["distilled-t2v"], context_parallel=2, offload="disk"),
        task("halves ", GUIDED, context_parallel=1, cfg_parallel=True),
        task("8 bits ", ["deep"], context_parallel=2, fp8_matmul=True),
    ],
    4: [
        task("", child.FILMS, context_parallel=4),
        task("compiled ", ["distilled-t2v"], context_parallel=4, compile=True),
        task("halves ", GUIDED, context_parallel=2, cfg_parallel=True),
    ],
}
# Four processes on two processors take a minute.
GROUPS = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def films_of(models, tmp_path_factory):
    """What a group of processes has made and counted; each group starts once."""
    made: dict[int, tuple[Path, list[subprocess.CompletedProcess]]] = {}

    def group(processes: int) -> tuple[Path, list[subprocess.CompletedProcess]]:
        if processes not in made:
            folder = tmp_path_factory.mktemp(f"of-{processes}")
            ran = spawn(
                processes,
                ("films", [models, folder / "latents.pt", TASKS[processes]]),
                ("traffic", [models, folder / "traffic.json", processes, TRAFFIC]),
                ("refusals", [models, folder / "refused.json"]),
                ("command", [short_film(models, folder)]),
            )
            assert [process.returncode for process in ran] == [0] * processes, [process.stderr for process in ran]
            made[processes] = (folder, ran)
        return made[processes]

    return group


@pytest.mark.parametrize("processes", GROUPS)
def test_latents_equal_those_of_one_process(films_of, alone, processes):
    latents = torch.load(films_of(processes)[0] / "latents.pt")
    assert len(latents) == sum(len(done["films"]) for done in TASKS[processes])
    for name, film in latents.items():
        if name.endswith("deep"):
            continue
        expected = alone[name.split()[-1]]
        assert film.shape == expected.shape
        assert (film - expected).abs().max() <= 1e-5 * expected.std(), name
        if processes == 2 and name.startswith("halves "):
            assert torch.equal(film, expected), "each half computes whole forwards"


def test_8_bit_products_are_as_near_as_those_of_one_process(films_of, models):
    exact = child.made(HeliosPipeline.from_pretrained(models / "deep"), "deep")
    alone = child.made(HeliosPipeline.from_pretrained(models / "deep", fp8_matmul=True), "deep")
    together = torch.load(films_of(2)[0] / "latents.pt")["8 bits deep"]
    off = (alone - exact).std()
    assert off > 0 and (together - exact).std() <= 1.5 * off


@pytest.mark.parametrize("processes", GROUPS)
def test_bytes_sent_equal_the_formula(films_of, processes):
    folder, _ = films_of(processes)
    config = TransformerConfig.from_dict(CONFIG)
    for place in range(processes):
        sent = json.loads((folder / f"traffic.{place}").read_text())
        for count, case in zip(sent, TRAFFIC, strict=True):
            history, noisy = tokens(case["height"] // 8, case["width"] // 8, 1)
            assert count == forward_bytes(config, history, noisy, processes, place, case["batch"], itemsize=4)


@pytest.mark.parametrize("processes", GROUPS)
def test_refusals_are_one_sentence_and_the_processes_go_on(films_of, processes):
    folder, _ = films_of(processes)
    told = [json.loads((folder / f"refused.{rank}").read_text()) for rank in range(processes)]
    for words in told:
        assert f"context_parallel={processes} is more than the model has attention heads" in words["heads"]
        assert "absent" in words["absent"] and words["absent"].startswith("process 1: ") == (words is not told[1])
        assert f"needs {processes + 1} processes, not {processes}" in words["count"]
    assert "cfg_parallel=True needs guidance, which guidance_scale=1 has not" in told[0]["guidance"]
    assert [words["after"] for words in told] == ["[2, 16, 18, 8, 8]"] + ["[0]"] * (processes - 1)


@pytest.mark.parametrize("processes", GROUPS)
def test_the_first_process_alone_writes_and_speaks(films_of, processes):
    folder, ran = films_of(processes)
    assert (folder / "film.mp4").is_file() and not list(folder.glob("*.partial.mp4"))
    assert len(ChunkStore(folder / "helios_store").manifests()[0]["chunks"]) == 2
    assert "film.mp4: 66 frames" in ran[0].stdout
    assert not any(process.stdout for process in ran[1:])


@pytest.fixture(scope="module")
def decoded_apart(models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("apart")
    ran = spawn(3, ("apart", [models, folder]), ("command", [[*short_film(models, folder), "--decode-parallel"]]))
    assert [process.returncode for process in ran] == [0] * 3, [process.stderr for process in ran]
    return folder


def test_another_process_decodes_while_the_next_chunk_is_sampled(decoded_apart, models):
    """It waits with the first chunk until the second one is at work."""
    made = torch.load(decoded_apart / "film.pt")
    pipeline = HeliosPipeline.from_pretrained(models / "distilled")
    keywords = {**child.FEW, **child.SQUARE, "prompt": "a boat", "num_frames": 99}
    alone = list(pipeline.stream(**keywords))
    expected = torch.cat([chunk.latents for chunk in alone], 2)
    assert made["order"] == [0, 1, 2]
    assert (made["latents"] - expected).abs().max() <= 1e-5 * expected.std()
    frames = torch.cat([pipeline.frames(latents)[None] for latents in made["latents"].split(9, 2)], 1)
    assert torch.equal(made["frames"], frames) and torch.equal(made["whole"], frames)


def test_what_cannot_be_decoded_ends_the_film_alone(decoded_apart):
    assert torch.load(decoded_apart / "film.pt")["told"] == "process 2, which decodes: no memory is left"


def test_a_file_is_the_same_whoever_decodes(decoded_apart, models, tmp_path):
    assert cli.main(short_film(models, tmp_path)) == 0
    films = [read_video(folder / "film.mp4") for folder in (decoded_apart, tmp_path)]
    assert films[0].shape == films[1].shape == (66, 64, 64, 3)
    off = (films[0].float() - films[1].float()).abs()
    assert off.mean() < 1, "latents differ by rounding, which the codec carries on"


def test_a_lost_process_ends_the_others(models, tmp_path):
    ran = spawn(2, ("lost", [models, tmp_path / "lost.json", 1]))
    assert ran[1].returncode < 0, "it was killed"
    told = (tmp_path / "lost.0").read_text()
    assert told.startswith("another process of this film ended or did not answer") and "finished chunks" in told


@pytest.mark.slow
def test_a_lost_decoder_ends_the_film(models, tmp_path):
    ran = spawn(2, ("lost_decoder", [models, tmp_path / "told"]))
    assert ran[1].returncode < 0, "it was killed"
    assert (tmp_path / "told").read_text().startswith("another process of this film ended or did not answer")


@pytest.mark.slow
def test_the_first_process_leaves_a_forward_at_once(models, tmp_path):
    """It does not wait to tell those who wait for it."""
    spawn(2, ("lost", [models, tmp_path / "lost.json", 0]))
    assert (tmp_path / "lost.0").read_text() == "", "a MemoryError, as it came"
    assert (tmp_path / "lost.1").read_text().startswith("another process of this film ended or did not answer")


def test_bad_input_on_the_command_line_is_told_once(models, tmp_path):
    film = ["generate", "--model", str(models / "distilled"), "--prompt", "x", "--output", str(tmp_path / "film.mp4")]
    ran = spawn(2, ("command", [[*film, "--steps", "0", "1", "1"]]))
    assert [process.returncode for process in ran] == [2, 2]
    assert "give 3 numbers of 1 to 1000" in ran[0].stderr and "error" not in ran[1].stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("environment", "arguments", "words"),
    [
        ({}, {"context_parallel": 2}, "context_parallel=2 needs 2 processes, not 1; start them with torchrun"),
        ({}, {"cfg_parallel": True}, "context_parallel=1 with cfg_parallel=True needs 2 processes, not 1"),
        ({}, {"decode_parallel": True}, "context_parallel=1 with decode_parallel=True needs 2 processes, not 1"),
        (
            {},
            {"context_parallel": 2, "cfg_parallel": True, "decode_parallel": True},
            "context_parallel=2 with cfg_parallel=True and decode_parallel=True needs 5 processes, not 1",
        ),
        ({}, {"context_parallel": 0}, "context_parallel=0 must be a whole number from 1"),
        ({}, {"context_parallel": "2"}, "context_parallel='2' must be a whole number"),
        ({"WORLD_SIZE": "two"}, {"context_parallel": 2}, "WORLD_SIZE='two' is no number of processes"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, {"context_parallel": 2}, "RANK=2 must be below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, {"context_parallel": 2}, "WORLD_SIZE=2 processes cannot meet"),
    ],
)
def test_a_crew_that_cannot_be(tiny_folder, monkeypatch, environment, arguments, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HeliosError, match=words):
        HeliosPipeline.from_pretrained(tiny_folder("distilled"), **arguments)


def test_what_several_processes_cannot_do_is_refused():
    with pytest.raises(HeliosError, match="no GPU for process 0"):
        Team(0, 2).device("cuda")
    with pytest.raises(HeliosError, match="cuda_graphs=True"):
        LoadOptions(cuda_graphs=True, processes=2).check("cpu")
    with pytest.raises(HeliosError, match="9 tokens cannot be divided among 10 processes"):
        Ulysses(0, 10).division(20, 9)


def test_options_that_depend_on_the_processes_tell_takes_apart():
    assert LoadOptions(fp8_matmul=True).inexact == ("fp8_matmul",)
    assert LoadOptions(fp8_matmul=True, attention="sage", processes=2).inexact == ("fp8_matmul in 2", "sage in 2")
    assert LoadOptions(processes=2).inexact == ()
