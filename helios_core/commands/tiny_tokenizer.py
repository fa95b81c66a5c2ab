"""helios-tiny's tokenizer: a small unigram model trained on a few sentences, in both forms of the release."""

import io
import json
from collections.abc import Sequence
from typing import Any

from ..checkpoint.text import require

_SENTENCES = """
A quiet lake lies under a violet sky while the first stars appear above the hills.
The red boat drifts past the old wooden pier, and gulls circle slowly overhead.
She walks through the rain with a bright umbrella, smiling at the busy street.
A close-up shot of a cat sleeping on a warm windowsill in the morning light.
Two children run along the beach, chasing a yellow kite against strong wind.
The camera pans across a green valley where sheep graze near a stone wall.
An old man repairs a clock at his desk; dust floats in a golden beam of sun.
Neon signs glow over a crowded market, and steam rises from bowls of noodles.
A train crosses a high bridge in the fog, its windows shining one by one.
Waves break on black rocks, throwing white spray into the cold evening air.
The astronaut floats beside a silver ship, looking down at a blue planet.
A chef cuts fresh vegetables with quick, precise movements in a small kitchen.
Snow falls on a silent forest, covering every branch and every narrow path.
A jazz band plays on stage while couples dance beneath hanging lamps.
The dog jumps over a fence, catches the ball and brings it back, tail wagging.
A drone shot follows a winding road between orange trees in late autumn.
Tropical fish swim gracefully among colorful corals in clear turquoise water.
A vintage car waits at the corner, reflecting the pink clouds of the sunset.
The dancer turns slowly, her long dress drawing a circle of silk around her.
Lightning flashes behind a castle, and heavy drops begin to strike the glass.
A wide view of a desert at noon: dunes, heat, and a caravan on the horizon.
The painter mixes deep blue with gray, then adds a single stroke of white.
Time-lapse footage of flowers opening in spring, detailed and realistic.
A robot waters plants inside a glass house, moving with gentle care.
Static, blurred details, low quality, overexposed, worst quality, ugly, still picture.
""".strip().splitlines()


def _spiece_model(vocab_size: int, sentences: Sequence[str]) -> bytes:
    model = io.BytesIO()
    require("sentencepiece").SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return model.getvalue()


def _tokenizer_json(spiece_model: bytes) -> dict[str, Any]:
    """The same tokenizer in the format of the tokenizers library."""
    pieces = require("sentencepiece").SentencePieceProcessor(model_proto=spiece_model)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    eos = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": pieces.id_to_piece(i), **special} for i in range(3)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, eos],
            "pair": [first, eos, second, eos],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[pieces.id_to_piece(i), pieces.get_score(i)] for i in range(pieces.get_piece_size())],
            "byte_fallback": False,
        },
    }


_SPECIAL_TOKENS = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "T5Tokenizer",
    **_SPECIAL_TOKENS,
    "extra_ids": 0,
    "additional_special_tokens": [],
    "model_max_length": 512,
    "clean_up_tokenization_spaces": False,
}


def tokenizer_files(vocab_size: int, sentences: Sequence[str] = _SENTENCES) -> dict[str, bytes]:
    """The files of tokenizer/ by name, its pieces learned from ``sentences``; the same bytes every time."""
    spiece_model = _spiece_model(vocab_size, sentences)
    return {
        "spiece.model": spiece_model,
        "tokenizer.json": as_json(_tokenizer_json(spiece_model)),
        "tokenizer_config.json": as_json(_TOKENIZER_CONFIG),
        "special_tokens_map.json": as_json(_SPECIAL_TOKENS),
    }


def as_json(value: dict[str, Any]) -> bytes:
    """As every JSON file of helios-tiny is written."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
