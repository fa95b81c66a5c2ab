"""Arguments of the command line and of the pipeline that no video can have."""

import time

import pytest

from helios_core.commands.cli import main
from helios_core.errors import HeliosError
from helios_core.pipeline import HeliosPipeline
from helios_core.samplers import BaseSampler, DMDSampler, SchedulerConfig
from helios_core.take.film import chunk_count

HANG_SECONDS = 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "9" * 23], "--seed 99999999999999999999999 must be 0 to 18446744073709551615"),
        (["--seed", "-1"], "--seed -1 must be 0"),
        (["--seconds", "1e300"], "--seconds 1e+300 must be a length above 0"),
        (["--seconds", "nan"], "--seconds nan must be a length"),
        (["--seconds", "1e5", "--fps", "1000"], "num_frames=100000000 must be at least 1, at most 330000"),
        (["--fps", "1" + "0" * 400], "The frame rate is 1"),
        (["--guidance", "nan"], "guidance_scale=nan is not a finite number"),
        (["--guidance", "inf"], "guidance_scale=inf is not a finite number"),
        (["--steps", "100000000", "1", "1"], "give 3 numbers of 1 to 1000"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(tiny_folder, tmp_path, capsys, arguments, words):
    film = ["generate", "--model", str(tiny_folder("distilled")), "--prompt", "x", "--width", "64", "--height", "64"]
    begun = time.monotonic()
    code = main([*film, "--seconds", "1", "--output", str(tmp_path / "film.mp4"), *arguments])
    assert time.monotonic() - begun < HANG_SECONDS
    assert code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ") and words in told and len(told) < 600
    assert not list(tmp_path.iterdir())


def test_the_pipeline_refuses_guidance_that_is_no_number(tiny_folder):
    pipeline = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    with pytest.raises(HeliosError, match="guidance_scale=nan is not a finite number"):
        pipeline("x", width=64, height=64, num_frames=33, guidance_scale=float("nan"), output_type="latent")


@pytest.mark.parametrize("frames", [10**9, 10**5000, -1], ids=["many", "digits", "negative"])
def test_a_video_has_a_length(frames):
    with pytest.raises(HeliosError, match="must be at least 1, at most 330000") as refused:
        chunk_count(frames)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**18, 10**400, 10**5000], ids=range(6))
def test_a_stage_has_as_many_steps_as_timesteps(steps):
    for make in (lambda: DMDSampler((steps, 1, 1)), lambda: BaseSampler((steps,), scheduler=SchedulerConfig(
        stages=1, stage_range=(0.0, 1.0), time_shift_type="exponential"
    ))):  # fmt: skip
        with pytest.raises(HeliosError, match=r"numbers? of 1 to 1000") as refused:
            make()
        assert len(str(refused.value)) < 300
    assert DMDSampler((1000, 1, 1)).total_steps(1) == 1002


@pytest.mark.parametrize(
    "command",
    [["live", "--prompt", "a boat"], ["tiny", "--output", "nowhere"], ["farm", "jobs.csv", "--output", "nowhere"]],
)
def test_only_generate_is_for_several_processes(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 2
    assert "start this command without torchrun" in capsys.readouterr().err
