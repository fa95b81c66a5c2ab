"""Aesthetic and semantic scores on the command line: CLIP and LAION's head, against transformers' own forward."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
pytest.importorskip("transformers")

import transformers

from helios_core.commands.cli import main
from helios_core.errors import HeliosError
from helios_core.video.drift.clip import MEAN, STD, Clip, ScoreModels
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings, encode_segment

WIDTH, SIDE, PROMPT = 24, 28, "a boat"
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": SIDE, "patch_size": 14}  # fmt: skip
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 12}  # fmt: skip
WORDS = ["<|startoftext|>", "<|endoftext|>", *"abot", *(f"{letter}</w>" for letter in "abot")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As ComfyUI's models/clip_vision: a CLIP folder with random weights beside a head."""
    found = tmp_path_factory.mktemp("clip_vision")
    torch.manual_seed(0)
    text = TEXT | {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPConfig(vision_config=VISION, text_config=text, projection_dim=WIDTH)
    clip = found / "clip-vit-large-patch14"
    transformers.CLIPModel(config).save_pretrained(clip)
    (clip / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (clip / "merges.txt").write_text("#version: 0.2\n")
    (clip / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    save_file(
        {"weight": torch.randn(1, WIDTH), "bias": torch.tensor([5.0])}, found / "sa_0_4_vit_l_14_linear.safetensors"
    )
    return found


def expected(folder, frames, prompt):
    """Aesthetic and semantic scores of frames at CLIP's own size, through CLIPModel as a whole."""
    model = transformers.CLIPModel.from_pretrained(folder / "clip-vit-large-patch14").float()
    letters = [0, *(WORDS.index(word) for word in ("a</w>", "b", "o", "a", "t</w>")), 1]
    assert prompt == PROMPT
    pixels = (torch.from_numpy(frames).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([letters]), pixel_values=pixels.permute(0, 3, 1, 2))
        head = torch.nn.Linear(WIDTH, 1)
        head.load_state_dict(load_file(folder / "sa_0_4_vit_l_14_linear.safetensors"))
        aesthetic = head(out.image_embeds)[:, 0]  # of length 1
        return aesthetic.tolist(), (out.logits_per_image[:, 0] / model.logit_scale.exp()).tolist()


def test_scores_are_those_of_transformers(folder):
    frames = np.random.default_rng(2).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    scores = ScoreModels.read(folder).of(PROMPT)
    assert scores.names == ("aesthetic", "semantic") and not scores.absent
    found = [scores.scorer(frame) for frame in frames]
    aesthetic, semantic = expected(folder, frames, PROMPT)
    assert [x["aesthetic"] for x in found] == pytest.approx(aesthetic, abs=1e-4)
    assert [x["semantic"] for x in found] == pytest.approx(semantic, abs=1e-5)
    assert ScoreModels.read(folder).of(None).names == ("aesthetic",)


def test_a_wide_frame_is_scaled_and_cut_as_clips_own_preprocessing_does(folder):
    """Against PIL: the shorter side to CLIP's size by bicubic, then the middle."""
    y, x = np.mgrid[:60, :100]
    frame = np.stack([x * 2, y * 4, 255 - x], axis=-1).astype(np.uint8)
    small = np.asarray(Image.fromarray(frame).resize((47, SIDE), Image.Resampling.BICUBIC))[:, 9 : 9 + SIDE]
    clip = Clip(folder / "clip-vit-large-patch14")
    ours, theirs = clip.frame(frame), clip.frame(small)
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9999


def test_a_long_prompt_is_read_as_far_as_clip_reads(folder):
    clip = Clip(folder / "clip-vit-large-patch14")
    assert torch.equal(clip.text("boat " * 50), clip.text("boat " * 99))
    assert not torch.equal(clip.text("boat"), clip.text("a boat"))


def test_what_is_absent_is_said_and_the_rest_is_measured(folder, tmp_path):
    def names_and_reasons(kept, prompt=PROMPT):
        found = ScoreModels.read(kept).of(prompt)
        return found.names, dict(found.absent)

    names, why = names_and_reasons(folder / "clip-vit-large-patch14")
    assert names == ("semantic",) and why["aesthetic"].endswith("holds no head of LAION")
    names, why = names_and_reasons(None)
    assert names == () and why["semantic"].endswith("on the command line by --clip-vision")
    other = tmp_path / "other"
    other.mkdir()
    save_file({"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, other / "head.safetensors")
    names, why = names_and_reasons(other)
    assert names == () and why["aesthetic"].endswith("holds no CLIP folder")
    damaged = other / "clip"
    damaged.mkdir()
    (damaged / "config.json").write_text(json.dumps({"model_type": "clip", "projection_dim": 8}))
    names, why = names_and_reasons(other)
    assert names == () and why["semantic"].startswith("clip is no whole CLIP folder")
    (damaged / "config.json").write_text(json.dumps({"model_type": "clip", "projection_dim": 9}))
    assert names_and_reasons(other)[1]["aesthetic"].endswith("holds no CLIP folder of width 8")
    with pytest.raises(HeliosError, match="is no folder; give one with a CLIP folder and LAION's head"):
        ScoreModels.read(tmp_path / "nowhere")


def test_drift_reports_them(folder, tmp_path, capsys):
    frames = np.random.default_rng(3).integers(0, 256, (9, SIDE, SIDE, 3), dtype=np.uint8)
    path = tmp_path / "film.mp4"
    path.write_bytes(encode_segment(torch.from_numpy(frames), VideoSettings(SIDE, SIDE, crf=0)))
    command = ["drift", str(path), "--chunk-frames", "5", "--clip-vision", str(folder), "--json"]
    assert main([*command, "--prompt", PROMPT]) == 0
    assert "Not measured" not in capsys.readouterr().out
    found = json.loads((tmp_path / "film.drift.json").read_text())["chunks"]
    aesthetic, semantic = expected(folder, read_video(path).numpy()[[0, 4, 8]], PROMPT)
    for name, values in (("aesthetic", aesthetic), ("semantic", semantic)):
        assert found[name] == pytest.approx([(values[0] + values[1]) / 2, values[2]], abs=1e-3)
    assert main(command) == 0
    assert "Not measured: semantic (it takes the film's prompt and CLIP" in capsys.readouterr().out


def test_bench_refuses_a_wrong_folder_before_it_reads_the_model(tmp_path, capsys):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,prompt,duration\n1,a boat,33\n")
    command = ["bench", "--model", str(tmp_path / "absent"), "--prompts", str(prompts)]
    assert main([*command, "--clip-vision", str(tmp_path / "nowhere")]) == 2
    assert "is no folder; give one with a CLIP folder" in capsys.readouterr().err


def test_bench_has_them_as_columns_and_measures_what_an_earlier_run_could_not(folder, tiny_folder, tmp_path, capsys):
    prompts, output = tmp_path / "prompts.csv", tmp_path / "bench"
    prompts.write_text(f"id,prompt,duration\n1,{PROMPT},33\n")
    command = ["bench", "--model", str(tiny_folder("distilled")), "--prompts", str(prompts), "--output", str(output),
               "--width", "64", "--height", "64", "--steps", "1", "1", "1"]  # fmt: skip
    assert main(command) == 0
    assert "Not measured: aesthetic (it takes CLIP ViT-L/14" in capsys.readouterr().out
    (first, *_) = csv.DictReader((output / "table.csv").open())
    assert not {"aesthetic", "semantic", "drift_semantic"} & first.keys()
    made = (output / "1_33.mp4").stat().st_mtime_ns
    assert main([*command, "--clip-vision", str(folder)]) == 0
    assert "Not measured" not in capsys.readouterr().out
    (second, *_) = csv.DictReader((output / "table.csv").open())
    assert (output / "1_33.mp4").stat().st_mtime_ns == made and second["fps"] == first["fps"]
    scorer = ScoreModels.read(folder).of(PROMPT).scorer
    scores = [scorer(frame.numpy()) for frame in read_video(output / "1_33.mp4")[::4]]
    for name in ("aesthetic", "semantic"):
        assert float(second[name]) == pytest.approx(np.mean([x[name] for x in scores]), rel=1e-3)
        assert float(second[f"drift_{name}"]) == pytest.approx(abs(scores[0][name] - scores[-1][name]), rel=1e-2)
