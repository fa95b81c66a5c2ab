"""The text encoder of a released folder: UMT5 and its tokenizer, placed on a device or streamed through it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import HeliosError, reason
from ..networks.settings import as_number, check_range, read_object
from ..networks.text import TextEncoder, Tokenizer
from .folder import read_json, read_tensors, weight_files
from .load import check_state_dict
from .streaming.text import stream_encoder
from .umt5 import EMBEDDING, MOST_LAYERS, TIED_EMBEDDING, run_time_type

WEIGHTS_NAME = "model.safetensors"
# T5's have 100, UMT5's 300; the tokenizer makes a name for each.
MOST_EXTRA_IDS = 10_000


def load_text_encoder(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    streamed: bool = False,
) -> TextEncoder:
    """Reads `text_encoder/` and `tokenizer/` of a pipeline folder, from disk only.

    The tokenizer folder may hold tokenizer.json, spiece.model, or both. Weights of the right type stay memory-mapped
    on the CPU. ``streamed`` reads the blocks from the file at every prompt; between prompts the encoder then holds
    one small tensor on the device and no thread.

    Raises:
        HeliosError: a missing, damaged or foreign file, or a missing library.
    """
    folder, device = Path(folder), torch.device(device)
    tokenizer = load_tokenizer(folder)
    weights = folder / "text_encoder"
    model = umt5_skeleton(read_json(weights / "config.json"), weights / "config.json").requires_grad_(False).eval()
    files = weight_files(weights, WEIGHTS_NAME)
    state = read_tensors(files)
    if EMBEDDING in state:
        state[TIED_EMBEDDING] = state[EMBEDDING]
    check_state_dict(model, state, weights, "UMT5 text encoder")
    if streamed:
        return TextEncoder(stream_encoder(model.encoder, files, state, dtype, device), tokenizer)
    placed = {name: tensor.to(device, run_time_type(name, dtype)) for name, tensor in state.items()}
    placed[TIED_EMBEDDING] = placed[EMBEDDING]
    model.load_state_dict(placed, assign=True)
    return TextEncoder(model, tokenizer)


def umt5_skeleton(config: Mapping[str, Any], source: Path | str) -> nn.Module:
    """transformers' UMT5EncoderModel without memory for its weights; ``config`` comes from ``source``.

    Raises:
        HeliosError: values that UMT5 cannot have, or transformers is not installed.
    """
    # What transformers takes as it is, and fails with later, or never ends with.
    check_range(str(source), "dropout_rate", as_number(config.get("dropout_rate", 0)), 0, 1)
    check_range(str(source), "num_layers", as_number(config.get("num_layers", 1)), 1, MOST_LAYERS)
    transformers = require("transformers")
    try:
        with torch.device("meta"):
            return transformers.UMT5EncoderModel(transformers.UMT5Config.from_dict(dict(config)))
    # transformers refuses a configuration with whatever its parts raise.
    except Exception as fault:
        raise HeliosError(f"{source} cannot be loaded ({reason(fault)}): download the text encoder again.") from fault


def umt5_shapes(config: Mapping[str, Any], source: Path | str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a file of this encoder holds: the tied embedding once.

    Raises:
        HeliosError: as for :func:`umt5_skeleton`.
    """
    state = umt5_skeleton(config, source).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name != TIED_EMBEDDING}


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a pipeline folder, from tokenizer/tokenizer.json where there is one, else spiece.model.

    HeliosError: neither file, an unreadable one, or a missing library.
    """
    files = Path(folder) / "tokenizer"
    try:
        if (files / "tokenizer.json").is_file():
            return _tried(_fast_tokenizer(files))
        if (files / "spiece.model").is_file():
            return _tried(_sentencepiece_tokenizer(files / "spiece.model"))
    except HeliosError:
        raise
    except Exception as fault:  # tokenizers and sentencepiece raise plain Exceptions too
        raise HeliosError(f"{files} cannot be loaded ({reason(fault)}): download the tokenizer again.") from fault
    raise HeliosError(f"{files} holds neither tokenizer.json nor spiece.model: choose a complete pipeline folder.")


def _tried(tokenizer: Tokenizer) -> Tokenizer:
    """Settings of a wrong type show only when a text is tokenized."""
    ids = tokenizer("a")
    if not ids or not all(isinstance(number, int) for number in ids):
        raise ValueError("it makes no token numbers")
    return tokenizer


def _fast_tokenizer(files: Path) -> Tokenizer:
    settings = files / "tokenizer_config.json"
    if settings.is_file():
        extra = read_object(settings).get("extra_ids")
        check_range(str(settings), "extra_ids", as_number(extra or 0), 0, MOST_EXTRA_IDS)
    transformers = require("transformers")
    name = _tokenizer_class(files.parent / "model_index.json")
    if name is None:
        name = "AutoTokenizer" if (files / "tokenizer_config.json").is_file() else "T5TokenizerFast"
    # transformers 4 has slow classes, which need spiece.model, beside the fast ones that read tokenizer.json.
    loader = getattr(transformers, f"{name.removesuffix('Fast')}Fast", transformers.AutoTokenizer)
    tokenizer = loader.from_pretrained(files, local_files_only=True)
    return lambda text: tokenizer(text, verbose=False).input_ids


def _tokenizer_class(model_index: Path) -> str | None:
    """The class that the pipeline names, which is the one that diffusers loads."""
    try:
        library, name = json.loads(model_index.read_text(encoding="utf-8"))["tokenizer"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if library == "transformers" and "Tokenizer" in name else None


def _sentencepiece_tokenizer(file: Path) -> Tokenizer:
    """sentencepiece itself, because transformers converts the file only where protobuf is installed."""
    pieces = require("sentencepiece").SentencePieceProcessor(model_file=str(file))
    return lambda text: [*pieces.encode(text), pieces.eos_id()]


def require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise HeliosError(
            f'{module} is not installed, which text encoding needs: run pip install "helios-comfyui[headless]".'
        ) from missing
