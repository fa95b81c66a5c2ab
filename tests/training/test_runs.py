"""A run that was killed goes on bit for bit; what is exported loads elsewhere and predicts the same."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helios_training import export, model, parts, trainer, vae
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from training.trainer import Run, Settings, Task

torch.set_num_threads(1)

class Fit(Task):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 1)))

    def loss(self, step, random):
        x = random.normal((16, 8))
        return (self.module(x) - x.sum(1, keepdim=True)).square().mean(), {}

die_at = int(sys.argv[2])

def on_step(step):
    if step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

run = Run(Fit(), Path(sys.argv[1]), Settings(steps=60, warmup=10, save_seconds=float(sys.argv[3])))
run.train(on_step=on_step)
"""


def _child(folder, die_at, save_seconds):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(folder), str(die_at), str(save_seconds)]
    return subprocess.run(command, env=environment, capture_output=True, cwd=folder.parent, check=False).returncode


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    assert _child(tmp_path / "whole", -1, 1e9) == 0
    killed = tmp_path / "killed"
    # With no time between saves every step is saved, so the kill comes right after a save.
    for die_at in (23,):
        assert _child(killed, die_at, 0.0) == -signal.SIGKILL
    assert _child(killed, -1, 1e9) == 0
    whole, found = (load_file(folder / trainer.STATE) for folder in (tmp_path / "whole", killed))
    assert whole.keys() == found.keys()
    assert all(torch.equal(whole[name], found[name]) for name in whole)
    losses = [
        [(e["step"], e["loss"]) for e in map(json.loads, (folder / trainer.LOG).read_text().splitlines())]
        for folder in (tmp_path / "whole", killed)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 60


def test_the_averaged_weights_lag_behind(tmp_path):
    class Drift(trainer.Task):
        def loss(self, step, random):
            return (self.module.weight - 5).square().mean(), {}

    run = trainer.Run(Drift(torch.nn.Linear(2, 2, bias=False)), tmp_path, trainer.Settings(steps=200, warmup=1))
    run.train()
    averaged = trainer.averaged_weights(tmp_path)["weight"]
    assert (averaged < run.names["weight"]).all()
    assert trainer.run_facts(tmp_path)["step"] == 200
    assert (tmp_path / trainer.PLOT).stat().st_size > 500


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A released folder of an untrained small model, made by the code that ships the trained one."""
    runs = tmp_path_factory.mktemp("runs")
    small = vae.new_vae(8)
    vae.make_lean(small)
    (runs / "vae").mkdir()
    weights = {f"average.{name}": p.detach().contiguous() for name, p in small.named_parameters()}
    save_file(weights, runs / "vae" / trainer.STATE)
    folder = parts.write_parts(runs, clips=3)
    transformer = model.new_transformer(num_layers=2)
    with torch.no_grad():
        transformer.output.proj.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    for parameter in transformer.parameters():
        parameter.data = parameter.data.half().float()
    return export.write_release(runs / "mid", folder, "mid", transformer), transformer


def test_diffusers_loads_the_folder_and_predicts_the_same(released):
    diffusers = pytest.importorskip("diffusers")
    folder, transformer = released
    theirs = diffusers.HeliosTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    latents, text = draw(1, 16, 9, 8, 16), draw(1, 512, model.TEXT_DIM)
    short, mid, long = draw(1, 16, 2, 8, 16), draw(1, 16, 2, 8, 16), draw(1, 16, 16, 8, 16)
    timestep = torch.tensor([700.0])
    with torch.no_grad():
        ours = transformer(latents, timestep, text, short, mid, long)
        expected = theirs(
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
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


def test_the_pipeline_renders_a_prompt_with_unknown_words(released):
    from helios_core.pipeline import HeliosPipeline

    pipe = HeliosPipeline.from_pretrained(released[0])
    assert pipe.variant == "mid"
    made = pipe(
        "An iridescent zeppelin ponders 漢字 🎈", width=64, height=64, num_frames=33, output_type="latent",
        pyramid_num_inference_steps_list=[1, 1, 1], guidance_scale=1.0,
    )  # fmt: skip
    assert made.latents.shape == (1, 16, 9, 8, 8)
    assert torch.isfinite(made.latents).all()


def test_neighbours_change_a_words_embedding(released):
    from helios_core.checkpoint.text import load_text_encoder

    encoder = load_text_encoder(released[0])
    red_ball, red_square, blue_ball = encoder.encode(
        ["A red ball moves left.", "A red square moves left.", "A blue ball moves left."], 24
    )
    red, ball = 1, 2  # the tokens after "A"
    likeness = torch.nn.functional.cosine_similarity
    # The word itself decides most, what stands beside it some.
    assert 0.6 < likeness(red_ball[red], red_square[red], dim=0) < 0.98
    assert 0.6 < likeness(red_ball[ball], blue_ball[ball], dim=0) < 0.98
    assert likeness(red_ball[red], blue_ball[red], dim=0) < 0.6
