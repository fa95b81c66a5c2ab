"""ViCLIP against numbers of its authors' own code, and the semantic score that the reports take from it."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
pytest.importorskip("transformers")

import transformers

from helios_core.commands import bench
from helios_core.commands.cli import main
from helios_core.video.drift.clip import ScoreModels
from helios_core.video.drift.meter import DriftMeter
from helios_core.video.drift.report import report_frames
from helios_core.video.drift.viclip import ViClip
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings, encode_segment

NAME, PROMPT = "ViClip-InternVid-10M-FLT.pth", "a boat"
WIDTH, LAYERS, PATCH, GRID, DIMENSIONS, LENGTH = 128, 2, 14, 2, 24, 6
WORDS = [*"abot", *(f"{letter}</w>" for letter in "abot"), "<|startoftext|>", "<|endoftext|>"]
# What OpenGVLab/InternVideo's own code (Data/InternVid/viclip: viclip_vision.py, viclip_text.py with `WORDS` as words)
# makes with `tensors()` of `clips()`, prepared by HeliosBench's clip_transform(28) (PKU-YuanGroup/Helios,
# eval/utils/utils.py), of a prompt that fits and of one that does not: the first numbers of each embedding, and the
# clips' cosines with the first prompt.
CLIPS = [
    [-0.45733, 1.21385, -0.96337, -0.31678, 0.70814, 1.36941],
    [-0.70751, 2.10296, -0.45814, -0.33696, -1.06434, 2.24858],
]
TEXT = {
    PROMPT: [0.49829, 0.55741, 0.48761, -0.64172, -1.31069, 0.68998],
    "boat boat": [0.35414, 1.89843, -0.00576, -0.48028, -0.70184, 0.54099],
}
COSINES = [0.139432, 0.127446]


def tensors():
    """A small ViCLIP in the names of the released file, of which every part weighs in."""
    rng = np.random.default_rng(0)

    def drawn(*shape, scale):
        return torch.from_numpy(rng.standard_normal(shape) * scale).float()

    def norm(name):
        return {f"{name}.weight": 1 + drawn(WIDTH, scale=0.3), f"{name}.bias": drawn(WIDTH, scale=0.3)}

    def linear(weight, bias, rows, columns):
        return {weight: drawn(rows, columns, scale=1.5 * columns**-0.5), bias: drawn(rows, scale=0.3)}

    def blocks(tower):
        found = {}
        for block in (f"{tower}.transformer.resblocks.{i}" for i in range(LAYERS)):
            found |= linear(f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias", 3 * WIDTH, WIDTH)
            found |= linear(f"{block}.attn.out_proj.weight", f"{block}.attn.out_proj.bias", WIDTH, WIDTH)
            found |= norm(f"{block}.ln_1")
            found |= linear(f"{block}.mlp.c_fc.weight", f"{block}.mlp.c_fc.bias", 4 * WIDTH, WIDTH)
            found |= linear(f"{block}.mlp.c_proj.weight", f"{block}.mlp.c_proj.bias", WIDTH, 4 * WIDTH)
            found |= norm(f"{block}.ln_2")
        return found

    return {
        "temp": torch.tensor(0.01),
        "vision_encoder.class_embedding": drawn(WIDTH, scale=0.5),
        "vision_encoder.positional_embedding": drawn(GRID**2 + 1, WIDTH, scale=0.5),
        "vision_encoder.temporal_positional_embedding": drawn(1, 8, WIDTH, scale=0.5),
        "vision_encoder.conv1.weight": drawn(WIDTH, 3, 1, PATCH, PATCH, scale=0.05),
        **norm("vision_encoder.ln_pre"),
        **blocks("vision_encoder"),
        **norm("vision_encoder.ln_post"),
        "vision_encoder.proj": drawn(WIDTH, DIMENSIONS, scale=WIDTH**-0.5),
        "text_encoder.positional_embedding": drawn(LENGTH, WIDTH, scale=0.5),
        "text_encoder.text_projection": drawn(WIDTH, DIMENSIONS, scale=WIDTH**-0.5),
        **blocks("text_encoder"),
        "text_encoder.token_embedding.weight": drawn(len(WORDS), WIDTH, scale=0.5),
        **norm("text_encoder.ln_final"),
    }


def clips():
    """Two of 8 frames, uint8 [8,40,56,3]."""
    return np.random.default_rng(1).integers(0, 256, (2, 8, 40, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """As ComfyUI's models/clip_vision: a CLIP folder with random weights, and no more."""
    found = tmp_path_factory.mktemp("clip_vision")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"max_position_embeddings": LENGTH, "vocab_size": len(WORDS), "bos_token_id": 8, "eos_token_id": 9}
    vision = {"image_size": 28, "patch_size": PATCH}
    config = transformers.CLIPConfig(vision_config=sizes | vision, text_config=sizes | text, projection_dim=8)
    clip = found / "clip-vit"
    transformers.CLIPModel(config).save_pretrained(clip)
    (clip / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (clip / "merges.txt").write_text("#version: 0.2\n")
    (clip / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return found


@pytest.fixture
def folder(clip_folder, tmp_path):
    """That folder, with a ViCLIP beside CLIP."""
    copy = shutil.copytree(clip_folder, tmp_path / "clip_vision")
    torch.save({"model": tensors()}, copy / NAME)
    return copy


@pytest.mark.parametrize("form", ["released", "old", "safetensors", "half"])
def test_embeddings_are_those_of_its_authors_code(clip_folder, tmp_path, form):
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "viclip.pth")
    if form == "safetensors":
        save_file(tensors(), path)
    else:
        content = {name: x.half() if form == "half" else x for name, x in tensors().items()}
        torch.save({"model": content}, path, _use_new_zipfile_serialization=form != "old")
    viclip = ViClip(path, clip_folder / "clip-vit")
    near = 0.02 if form == "half" else 1e-4
    for frames, expected in zip(clips(), CLIPS, strict=True):
        found = viclip.clip([viclip.shrunk(frame) for frame in frames])
        assert found.shape == (DIMENSIONS,) and found[:6].tolist() == pytest.approx(expected, abs=near)
    for prompt, expected in TEXT.items():
        assert viclip.text(prompt)[:6].tolist() == pytest.approx(expected, abs=near)


def test_a_report_has_the_cosines_of_its_groups(folder):
    """Two groups of 8 scored frames, each a chunk."""
    film = np.repeat(clips().reshape(16, 40, 56, 3), 4, axis=0)
    scores = ScoreModels.read(folder).of(PROMPT)
    assert scores.names == ("semantic",) and scores.absent.keys() == {"aesthetic"}
    report = report_frames(film, chunk_frames=32, scores=scores)
    assert report.chunks["semantic"] == pytest.approx(COSINES, abs=1e-5)
    assert report.drifts[-1].drift == pytest.approx(abs(COSINES[1] - COSINES[0]), abs=1e-5)
    assert report_frames(film[:32], scores=scores).chunks["semantic"] == pytest.approx(COSINES[:1], abs=1e-5)


class Recorder:
    """Says how many groups it has seen, and keeps the frames' numbers of each."""

    name, size = "semantic", 8

    def __init__(self):
        self.seen = []

    def shrunk(self, frame):
        return frame[0, 0, 0]

    def __call__(self, frames):
        self.seen.append([int(x) for x in frames])
        return len(self.seen)


@pytest.mark.parametrize(
    ("count", "groups", "sizes"),
    [
        (16, [list(range(8)), list(range(8, 16))], [8, 8]),
        (11, [list(range(8)), list(range(3, 11))], [8, 3]),  # the last three with the five before them
        (3, [[0, 0, 0, 1, 1, 1, 2, 2]], [3]),
        (1, [[0] * 8], [1]),
        (0, [], []),
    ],
)
def test_each_scored_frame_has_the_score_of_its_group(count, groups, sizes):
    recorder = Recorder()
    meter = DriftMeter(groups=recorder)
    for i in range(4 * count):
        meter.add(np.full((8, 8, 3), i // 4, np.uint8))
    meter.finish()
    values = meter.series("semantic")
    assert recorder.seen == groups and len(values) == 4 * count
    assert values[::4].tolist() == [float(i) for i, size in enumerate(sizes, 1) for _ in range(size)]
    assert np.isnan(np.delete(values, np.s_[::4])).all()


def test_drift_says_whose_score_it_is(folder, tmp_path, capsys):
    frames = np.random.default_rng(3).integers(0, 256, (9, 28, 28, 3), dtype=np.uint8)
    path = tmp_path / "film.mp4"
    path.write_bytes(encode_segment(torch.from_numpy(frames), VideoSettings(28, 28, crf=0)))
    command = ["drift", str(path), "--chunk-frames", "5", "--clip-vision", str(folder), "--json", "--prompt", PROMPT]

    def semantic():
        assert main(command) == 0
        found = json.loads((tmp_path / "film.drift.json").read_text())
        unit = found["drift"]["semantic"]["unit"]
        assert unit in capsys.readouterr().out
        return unit, found["chunks"]["semantic"]

    viclip = ViClip(folder / NAME, folder / "clip-vit")
    first, second, third = (viclip.shrunk(frame.numpy()) for frame in read_video(path)[::4])
    whole = viclip.clip([first] * 3 + [second] * 3 + [third] * 2)
    cosine = torch.cosine_similarity(whole, viclip.text(PROMPT), dim=0).item()
    unit, values = semantic()
    assert unit.endswith("by ViCLIP") and values == pytest.approx([cosine] * 2, abs=1e-5)
    (folder / NAME).unlink()
    unit, values = semantic()
    assert unit.endswith("by CLIP") and values[0] != values[1]


def test_what_is_no_viclip_is_said_and_the_rest_is_measured(folder, tmp_path):
    save_file({"weight": torch.zeros(1, 8), "bias": torch.ones(1)}, folder / "head.safetensors")

    def reason(content=None):
        if content is not None:
            torch.save(content, folder / NAME)
        scores = ScoreModels.read(folder).of(PROMPT)
        assert scores.names == ("aesthetic",)
        return scores.absent["semantic"]

    whole = tensors()
    assert ScoreModels.read(folder).of(PROMPT).names == ("aesthetic", "semantic")
    assert ScoreModels.read(folder).of(None).names == ("aesthetic",)
    assert reason({"weight": torch.zeros(1)}) == f"{NAME} is no whole ViCLIP (unexpected content)"
    assert reason([1, 2]) == f"{NAME} is no whole ViCLIP (unexpected content)"
    assert "holds more than plain weights" in reason({"model": whole, "config": Recorder()})
    lacking = {name: x for name, x in whole.items() if name != "text_encoder.ln_final.bias"}
    assert "1 missing (text_model.final_layer_norm.bias) tensors" in reason({"model": lacking})
    narrow = whole | {"vision_encoder.ln_post.bias": torch.zeros(3)}
    assert "vision_model.post_layernorm.bias [3] instead of [128]" in reason({"model": narrow})
    more = whole | {"text_encoder.token_embedding.weight": torch.zeros(11, WIDTH)}
    assert reason({"model": more}) == f"{NAME} knows 11 tokens, and the tokenizer of clip-vit 10"
    (folder / NAME).write_bytes((folder / NAME).read_bytes()[:-1000])
    assert f"{NAME} is no whole ViCLIP" in reason()
    torch.save({"model": whole}, folder / NAME)
    (folder / "clip-vit" / "vocab.json").write_text("{")
    assert "ViCLIP takes the tokenizer of clip-vit, which has none" in ScoreModels.read(folder).absent["semantic"]
    shutil.rmtree(folder / "clip-vit")
    assert ScoreModels.read(folder).absent == {
        "aesthetic": f"{folder} holds no CLIP folder",
        "semantic": f"ViCLIP takes the tokenizer of a CLIP folder, and {folder} holds none",
    }


def test_a_whole_one_is_found_beside_others(folder, monkeypatch):
    """Also in a folder of its name; what has another name is not opened."""
    torch.save({"model": tensors(), "config": Recorder()}, folder / "ViCLIP-L_InternVid-FLT-10M.pth")  # larger, refused
    assert ScoreModels.read(folder).semantic_by == "ViCLIP"
    (folder / "ViCLIP-L-14-hf").mkdir()
    (folder / NAME).unlink()
    save_file(tensors(), folder / "ViCLIP-L-14-hf" / "model.safetensors")
    assert ScoreModels.read(folder).semantic_by == "ViCLIP"
    shutil.rmtree(folder / "ViCLIP-L-14-hf")
    (folder / "ViCLIP-L_InternVid-FLT-10M.pth").rename(folder / "other.pth")
    monkeypatch.setattr("helios_core.video.drift.aesthetic.LARGEST", 0)
    monkeypatch.setattr(torch, "load", None)
    assert ScoreModels.read(folder).semantic_by == "CLIP"


def test_bench_scores_films_of_the_other_network_anew(folder, clip_folder, tiny_folder, tmp_path, monkeypatch):
    prompts, output = tmp_path / "prompts.csv", tmp_path / "bench"
    prompts.write_text(f"id,prompt,duration\n1,{PROMPT},33\n")
    command = ["bench", "--model", str(tiny_folder("distilled")), "--prompts", str(prompts), "--output", str(output),
               "--width", "64", "--height", "64", "--steps", "1", "1", "1", "--clip-vision"]  # fmt: skip

    def line(clip_vision):
        assert main([*command, str(clip_vision)]) == 0
        return next(csv.DictReader((output / "table.csv").open()))

    first, made = line(clip_folder), (output / "1_33.mp4").stat().st_mtime_ns
    second = line(folder)
    assert (first["semantic_by"], second["semantic_by"]) == ("CLIP", "ViCLIP")
    assert (output / "1_33.mp4").stat().st_mtime_ns == made and second["fps"] == first["fps"]
    scores = ScoreModels.read(folder).of(PROMPT)
    report = report_frames((x.numpy() for x in read_video(output / "1_33.mp4")), scores=scores)
    assert float(second["semantic"]) == pytest.approx(report.chunks["semantic"][0], rel=1e-3)
    monkeypatch.setattr(ScoreModels, "of", None)  # a known film's prompt is not encoded again
    assert line(folder) == second
    settings = json.loads((output / "results.jsonl").read_text().splitlines()[0])["settings"]
    for wanted, known in ((None, "ViCLIP"), ("ViCLIP", "ViCLIP"), ("CLIP", None)):
        (result,) = bench.known_results(output / "results.jsonl", settings, wanted).values()
        assert result.get("semantic_by") == known and ("drift_semantic" in result) == (known is not None)
