"""Prompts to text embeddings with the checkpoint's UMT5 encoder (DESIGN section 6.14)."""

import html
import importlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import HeliosError, reason, shortened
from ..settings import as_number, check_range, read_object

log = logging.getLogger(__name__)

MAX_LENGTH = 512
# T5's have 100, UMT5's 300; the tokenizer makes a name for each.
MOST_EXTRA_IDS = 10_000

# A tokenizer gives one prompt's ids: no padding, not truncated, the end token last.
Tokenizer = Callable[[str], list[int]]


def clean_prompt(prompt: str) -> str:
    """The prompt as the tokenizer sees it: mojibake mended, HTML entities decoded, whitespace collapsed."""
    try:
        import ftfy
    except ImportError:
        fixed = prompt
    else:
        fixed = ftfy.fix_text(prompt)
    # Twice, because scraped captions hold entities of entities (&amp;quot;).
    return " ".join(html.unescape(html.unescape(fixed)).split())


class TextEncoder:
    """UMT5 encoder and tokenizer of one pipeline folder."""

    def __init__(self, model: torch.nn.Module, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "TextEncoder":
        """Load `text_encoder/` and `tokenizer/` of a pipeline folder, from disk only.

        The tokenizer folder may hold tokenizer.json, spiece.model, or both.
        HeliosError: a missing folder or file, or one that transformers cannot read.
        """
        folder = Path(folder)
        tokenizer = load_tokenizer(folder)
        weights = folder / "text_encoder"
        if not (weights / "config.json").is_file():
            raise HeliosError(f"{weights} has no config.json: choose a complete Helios pipeline folder.")
        # Numbers that transformers takes as they are, and fails with, or waits for, later.
        config = read_object(weights / "config.json")
        check_range(str(weights / "config.json"), "dropout_rate", as_number(config.get("dropout_rate", 0)), 0, 1)
        transformers = require("transformers")
        try:
            # transformers before 4.56 does not know the newer keyword dtype=.
            model, report = transformers.UMT5EncoderModel.from_pretrained(
                weights, torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        # transformers refuses a configuration with whatever its parts raise, safetensors with a plain Exception.
        except Exception as fault:
            message = f"{weights} cannot be loaded ({reason(fault)}): download the text encoder again."
            raise HeliosError(message) from fault
        missing = set(report["missing_keys"]) - {"encoder.embed_tokens.weight"}
        if missing:
            raise HeliosError(f"{weights} lacks {sorted(missing)[0]!r}: download the text encoder again.")
        return cls(model.eval().requires_grad_(False).to(device), tokenizer)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_length: int = MAX_LENGTH) -> Tensor:
        """Embeddings [B, max_length, D] in the encoder's dtype; rows past a prompt's end token are zero.

        A longer prompt is cut, its end token kept, and a warning says by how many tokens.
        HeliosError: no prompt, or one that is not a string.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
            raise HeliosError(f"prompts is {shortened(prompts)}: put one or more strings in a list.")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise HeliosError(f"prompt {shortened(prompt)} is of type {type(prompt).__name__}: pass a string.")
        rows = [_truncate(self.tokenizer(clean_prompt(prompt)), max_length) for prompt in prompts]
        device = next(self.model.parameters()).device
        ids = torch.zeros(len(rows), max_length, dtype=torch.long)  # UMT5's padding id is 0
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        ids, mask = ids.to(device), mask.to(device)
        states = self.model(ids, mask).last_hidden_state
        # where, not a product: a padded row that overflowed would stay NaN.
        return torch.where(mask.bool()[..., None], states, torch.zeros_like(states))


def _truncate(ids: list[int], max_length: int) -> list[int]:
    dropped = len(ids) - max_length
    if dropped <= 0:
        return ids
    log.warning("The prompt is %d tokens long: its last %d tokens were dropped.", len(ids), dropped)
    return ids[: max_length - 1] + ids[-1:]


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
