"""The CLIP of Helios Text Encoder Loader against transformers' UMT5, in a process with core's modules."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, UMT5EncoderModel

PROMPTS = [
    "a red boat on a quiet lake",
    "",
    "a (very bright:1.3) light, (soft) shadows",
    "一艘红色的小船",
    "a storm over the sea " * 200,
]
SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
tree, pack, folder, output, prompts = sys.argv[1:6]
sys.argv = ["main.py", "--cpu", "--fp32-text-enc"]
sys.path.insert(0, tree)
import comfy.options
comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location("helios_pack", Path(pack) / "__init__.py",
                                              submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["helios_pack"] = module
spec.loader.exec_module(module)
from helios_pack.nodes.adapters.text_encoder import load_text_encoder
from safetensors.torch import save_file
clip = load_text_encoder(folder)
encoded = {str(i): clip.encode_from_tokens(clip.tokenize(p)) for i, p in enumerate(json.loads(prompts))}
save_file({key: value.contiguous() for key, value in encoded.items()}, output)
"""


@pytest.mark.parametrize("missing", [None, pytest.param("spiece.model", marks=pytest.mark.slow)])
def test_text_embeddings_equal_transformers(comfyui_tree, tiny_folder, tmp_path, missing):

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("distilled"), folder)
    if missing:
        (folder / "tokenizer" / missing).unlink()
    output = tmp_path / "text.safetensors"
    root = Path(__file__).resolve().parents[2]
    arguments = [str(comfyui_tree), str(root), str(folder), str(output), json.dumps(PROMPTS)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]

    encoder = UMT5EncoderModel.from_pretrained(tiny_folder("distilled") / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("distilled") / "tokenizer")
    encoded = load_file(output)
    for i, prompt in enumerate(PROMPTS):
        tokens = tokenizer(prompt, padding="max_length", max_length=512, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        expected = hidden * tokens.attention_mask.unsqueeze(-1)
        assert encoded[str(i)].shape == expected.shape == (1, 512, 32)
        assert (encoded[str(i)] - expected).abs().max() <= 1e-4, prompt
