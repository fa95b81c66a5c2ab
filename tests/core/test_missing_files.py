"""What a released folder lacks, told by the files that are not there."""

import shutil

import pytest

from helios_core.checkpoint.folder import missing_files

SHARD = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder("mid"), tmp_path / "model")


def test_a_whole_folder_lacks_nothing(folder):
    assert missing_files(folder) == []
    (folder / "tokenizer" / "spiece.model").unlink()
    assert missing_files(folder) == [], "one of the tokenizer's two files is enough"


@pytest.mark.parametrize(
    "name",
    [
        SHARD,
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_each_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert missing_files(folder) == [name]


def test_no_tokenizer_at_all_is_named(folder):
    shutil.rmtree(folder / "tokenizer")
    assert missing_files(folder) == ["tokenizer/tokenizer.json"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../b"}}']
)
def test_an_index_that_cannot_be_read_names_no_file_outside(folder, content):
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    assert all(name.startswith("transformer/") and ".." not in name for name in missing_files(folder))


def test_a_folder_that_is_not_there_lacks_everything(tmp_path):
    missing = missing_files(tmp_path / "absent")
    assert missing[0] == "model_index.json" and {"transformer", "vae", "text_encoder", "tokenizer"} <= {
        name.split("/")[0] for name in missing
    }
