"""Text embeddings against diffusers' own encoding of the same prompts with the same weights."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helios_core.checkpoint.text import load_text_encoder, load_tokenizer
from helios_core.commands.tiny import write_tiny
from helios_core.errors import HeliosError
from helios_core.networks.text import clean_prompt

PROMPTS = Path(__file__).resolve().parents[3] / "shared" / "prompts"
WRITTEN = [
    "",
    "a quiet lake under a violet sky",
    "  spaces\t and \n lines  ",
    "Tom &amp;amp; Jerry &lt;3 &quot;cheese&quot;",
    "一艘红色的船漂过旧码头, slowly",
    "naïve café — “quoted” … 🚤",
    "a waterfall (slow motion:1.3) [wide]",
    "the red boat drifts past the old wooden pier " * 60,
]
TOKENIZER_FILES = {
    "tokenizer.json": ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
    "spiece.model": ["spiece.model", "tokenizer_config.json", "special_tokens_map.json"],
    "both": ["spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
    "tokenizer.json alone": ["tokenizer.json"],
    "spiece.model alone": ["spiece.model"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("text") / "helios-tiny")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """diffusers' pipeline; it cannot clean a prompt without ftfy."""
    pytest.importorskip("ftfy")
    diffusers = pytest.importorskip("diffusers")
    return diffusers.HeliosPyramidPipeline.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def expected(pipe: Any, prompts: list[str]) -> torch.Tensor:
    return pipe._get_t5_prompt_embeds(prompts, max_sequence_length=512, device="cpu")[0]


def with_tokenizer_files(folder: Path, target: Path, names: list[str]) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("tokenizer"))
    (target / "tokenizer").mkdir()
    for name in names:
        shutil.copy(folder / "tokenizer" / name, target / "tokenizer" / name)
    return target


@pytest.mark.parametrize("files", TOKENIZER_FILES)
def test_embeddings_equal_diffusers(folder: Path, reference: Any, tmp_path: Path, files: str) -> None:
    encoder = load_text_encoder(with_tokenizer_files(folder, tmp_path / "copy", TOKENIZER_FILES[files]))
    embeddings = encoder.encode(WRITTEN)
    assert embeddings.shape == (len(WRITTEN), 512, 32)
    torch.testing.assert_close(embeddings, expected(reference, WRITTEN), rtol=0, atol=1e-5)
    # The empty prompt is its end token alone; distinct prompts differ.
    assert [int(row.any(-1).sum()) for row in (embeddings[0], embeddings[-1])] == [1, 512]
    assert (embeddings[1] - embeddings[2]).abs().max() > 0.1


def test_a_folder_without_model_index_is_enough(folder: Path, reference: Any, tmp_path: Path) -> None:
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(folder / part, tmp_path / part)
    embeddings = load_text_encoder(tmp_path).encode(WRITTEN)
    torch.testing.assert_close(embeddings, expected(reference, WRITTEN), rtol=0, atol=1e-5)


def test_a_sharded_text_encoder_loads(folder: Path, reference: Any, tmp_path: Path) -> None:
    target = shutil.copytree(folder, tmp_path / "sharded")
    file = target / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    weight_map = {}
    for i in (1, 2):
        part = {name: tensors[name] for name in list(tensors)[i - 1 :: 2]}
        name = f"model-{i:05d}-of-00002.safetensors"
        save_file(part, file.with_name(name), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    file.with_name("model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    embeddings = load_text_encoder(target).encode(WRITTEN[:2])
    torch.testing.assert_close(embeddings, expected(reference, WRITTEN[:2]), rtol=0, atol=1e-5)


def released_prompts() -> list[str]:
    if not PROMPTS.is_dir():
        pytest.skip("the project's real prompts lie outside the checkout and are absent here")
    prompts = (PROMPTS / "prompts.txt").read_text(encoding="utf-8").splitlines()
    for name in ("heliosbench.csv", "interactive.csv"):
        with (PROMPTS / name).open(encoding="utf-8", newline="") as file:
            prompts += [row["prompt"] for row in csv.DictReader(file)]
    return [prompt for prompt in prompts if prompt]


def test_real_prompts_equal_diffusers(folder: Path, reference: Any) -> None:
    prompts = released_prompts()[::40]
    embeddings = load_text_encoder(folder).encode(prompts)
    torch.testing.assert_close(embeddings, expected(reference, prompts), rtol=0, atol=1e-5)


def test_both_tokenizer_files_give_the_same_ids_for_real_prompts(folder: Path, tmp_path: Path) -> None:
    fast = load_tokenizer(folder)
    slow = load_tokenizer(with_tokenizer_files(folder, tmp_path / "copy", ["spiece.model"]))
    prompts = released_prompts()
    assert len(prompts) > 100
    for prompt in map(clean_prompt, prompts):
        assert fast(prompt) == slow(prompt), prompt


def test_truncation_is_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_text_encoder(folder)
    prompt = "boat " * 400
    tokens = len(encoder.tokenizer(clean_prompt(prompt)))
    assert tokens > 512
    with caplog.at_level(logging.WARNING, logger="helios_core.networks.text"):
        encoder.encode([prompt, "a boat"])
    assert [record.getMessage() for record in caplog.records if record.name == "helios_core.networks.text"] == [
        f"The prompt is {tokens} tokens long: its last {tokens - 512} tokens were dropped."
    ]


def test_half_a_surrogate_pair_is_a_question_mark(folder: Path) -> None:
    """As under ComfyUI: JSON may carry it, and no tokenizer takes it."""
    encoder = load_text_encoder(folder)
    assert torch.equal(encoder.encode(["a \ud800 boat"]), encoder.encode(["a ? boat"]))


def test_dtype_is_kept(folder: Path) -> None:
    assert load_text_encoder(folder, dtype=torch.bfloat16).encode(["a boat"]).dtype == torch.bfloat16


@pytest.mark.parametrize("prompts", [[], "a boat", [3], ["a boat", None], None])
def test_what_is_no_prompt_is_refused(folder: Path, prompts: Any) -> None:
    with pytest.raises(HeliosError, match="prompt"):
        load_text_encoder(folder).encode(prompts)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("tokenizer", "neither tokenizer.json nor spiece.model"),
        ("text_encoder/config.json", r"text_encoder/config\.json is missing"),
        ("text_encoder/model.safetensors", r"text_encoder/model\.safetensors is missing"),
        ("tensor", r"1 missing \(encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight\)"),
    ],
)
def test_an_incomplete_folder_is_named(folder: Path, tmp_path: Path, damage: str, message: str) -> None:
    target = shutil.copytree(folder, tmp_path / "damaged")
    if damage == "tensor":
        file = target / "text_encoder" / "model.safetensors"
        tensors = load_file(file)
        del tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
        save_file(tensors, file, metadata={"format": "pt"})
    elif (target / damage).is_dir():
        shutil.rmtree(target / damage)
    else:
        (target / damage).unlink()
    with pytest.raises(HeliosError, match=message):
        load_text_encoder(target)
