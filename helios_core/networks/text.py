"""Prompts to text embeddings: at most 512 tokens of UMT5 with masked attention, zero past the prompt's end."""

import html
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import HeliosError, shortened

log = logging.getLogger(__name__)

MAX_LENGTH = 512

# A tokenizer gives one prompt's ids: no padding, not truncated, the end token last.
Tokenizer = Callable[[str], list[int]]


def whole_characters(prompt: str) -> str:
    """The prompt with a question mark for half a surrogate pair, which JSON may carry and no tokenizer takes."""
    return prompt.encode("utf-8", "replace").decode("utf-8")


def clean_prompt(prompt: str) -> str:
    """The prompt as the tokenizer sees it: mojibake mended, HTML entities decoded, whitespace collapsed."""
    prompt = whole_characters(prompt)
    try:
        import ftfy
    except ImportError:
        fixed = prompt
    else:
        fixed = ftfy.fix_text(prompt)
    # Twice, because scraped captions hold entities of entities (&amp;quot;).
    return " ".join(html.unescape(html.unescape(fixed)).split())


class TextEncoder:
    """UMT5 with its tokenizer; ``model`` takes ids and mask, each [B,L], and gives ``last_hidden_state`` [B,L,D]."""

    def __init__(self, model: torch.nn.Module, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

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
