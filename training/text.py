"""The text side of helios-small: a tokenizer of the world's words and a fixed UMT5 that is never trained.

Its weights are random but arranged. In every layer each head looks at one neighbouring token, so that a word's
embedding also tells what stands beside it: "red" is another vector in "red ball" than in "red square". What the
words mean is learned by the transformer.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from helios_core.checkpoint.text import umt5_skeleton
from helios_core.checkpoint.umt5 import TIED_EMBEDDING
from helios_core.commands.tiny_tokenizer import tokenizer_files

from .world import BACKGROUNDS, CAMERAS, COLOURS, KINDS, PHRASES, caption, draw_scene

VOCABULARY, DIM, HEADS, LAYERS = 140, 128, 4, 2
NEIGHBOURS = (1, 17, 2, 18)  # T5's buckets of the offsets -1, +1, -2, +2, one per head
ATTENTION_BIAS = 8.0

TEXT_CONFIG: dict[str, Any] = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "d_model": DIM,
    "d_kv": DIM // HEADS,
    "d_ff": 2 * DIM,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-06,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "vocab_size": VOCABULARY,
}


def sentences() -> list[str]:
    """What the tokenizer learns its pieces from: captions, every word of the world alone, and all ASCII letters."""
    words = [*COLOURS, *KINDS, *CAMERAS.values(), *PHRASES.values(), *(phrase for phrase, *_ in BACKGROUNDS.values())]
    captions = [caption(draw_scene(seed), chunk) for seed in range(150) for chunk in range(5)]
    letters = [chr(code) for code in range(33, 127)]
    return captions + 20 * words + letters


def encoder_tensors(seed: int = 0) -> dict[str, Tensor]:
    """The encoder's tensors under the released names."""
    generator = torch.Generator().manual_seed(seed)

    def fill(name: str, shape: tuple[int, ...]) -> Tensor:
        if "norm" in name:
            return torch.ones(shape)
        drawn = torch.randn(shape, generator=generator)
        if name == "shared.weight":
            return drawn
        if "relative_attention_bias" in name:
            drawn.mul_(0.1)
            for head, bucket in enumerate(NEIGHBOURS):
                drawn[bucket, head] += ATTENTION_BIAS
            return drawn
        gain = {"q.": 0.3 * TEXT_CONFIG["d_kv"] ** -0.5, "k.": 0.3, "v.": 1.0, "o.": 0.6, "wo": 0.4}
        return (
            drawn
            * next((g for key, g in gain.items() if key in name.rsplit(".", 2)[-2] + "."), 1.0)
            / math.sqrt(shape[1])
        )

    model = umt5_skeleton(TEXT_CONFIG, "helios-small")
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items() if name != TIED_EMBEDDING}
    return {name: fill(name, shape) for name, shape in shapes.items()}


def write_text(folder: Path) -> None:
    """Writes ``text_encoder/`` and ``tokenizer/`` of a released folder; the same bytes every time."""
    (folder / "text_encoder").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer").mkdir(exist_ok=True)
    for name, content in tokenizer_files(VOCABULARY, sentences()).items():
        (folder / "tokenizer" / name).write_bytes(content)
    config = json.dumps(TEXT_CONFIG, indent=2) + "\n"
    (folder / "text_encoder" / "config.json").write_text(config, encoding="utf-8")
    # transformers refuses a file whose metadata does not name the framework.
    tensors = {name: tensor.half().contiguous() for name, tensor in encoder_tensors().items()}
    save_file(tensors, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
