"""UMT5 from a released folder or a single file as ComfyUI's own CLIP type."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.spiece_tokenizer
import comfy.text_encoders.t5
import comfy.utils
import tokenizers
import torch
from torch import Tensor

from ...helios_core.checkpoint.folder import existing_file, read_json, read_tensors, weight_files
from ...helios_core.checkpoint.header import read_header
from ...helios_core.checkpoint.load import check_state_dict
from ...helios_core.checkpoint.quantised import without_companions
from ...helios_core.checkpoint.umt5 import SPIECE_TENSOR, TIED_EMBEDDING, umt5_config
from ...helios_core.errors import HeliosError
from ...helios_core.networks.text import whole_characters

NAME = "umt5xxl"
MAX_TOKENS = 512
END_TOKEN, PAD_TOKEN = 1, 0

log = logging.getLogger(__name__)


def load_text_encoder(path: str | Path) -> comfy.sd.CLIP:
    """Builds core's CLIP around a released folder's text_encoder and tokenizer, or around a single UMT5 file.

    Raises:
        HeliosError: a file is missing, damaged or foreign.
    """
    path = Path(path)
    tensors, config, tokenizer = _read_file(path) if path.is_file() else _read_folder(path)
    tensors.pop(TIED_EMBEDDING, None)
    _check_tensors(tensors, config, path)
    # A single file is stored in the type it is to be used in; core holds the same view.
    dtype = tensors["encoder.final_layer_norm.weight"].dtype if path.is_file() else None
    quantisation = comfy.utils.detect_layer_quantization(tensors, "")
    target = comfy.supported_models_base.ClipTarget(tokenizer, _model_class(core_config(config), dtype, quantisation))
    parameters = comfy.utils.calculate_parameters(tensors)
    clip = comfy.sd.CLIP(target, parameters=parameters, state_dict=[tensors])
    clip.patcher.cached_patcher_init = (_reload_patcher, (path,))
    return clip


def _check_tensors(tensors: dict[str, Tensor], config: dict[str, Any], path: Path) -> None:
    """Core goes on without a tensor, casts whole numbers, and fails in torch's words over another shape.

    It ignores those of a decoder, which files of the whole model have.
    """
    try:
        skeleton = comfy.text_encoders.t5.T5(core_config(config), None, "meta", comfy.ops.disable_weight_init)
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise HeliosError(f"{path} has an incomplete text_encoder/config.json; download it again.") from None
    ignored = without_companions(tensors).keys() - skeleton.state_dict().keys()
    used = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    check_state_dict(skeleton, used, path, "UMT5 text encoder")


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], type]:
    config = read_json(folder / "text_encoder" / "config.json")
    if config.get("model_type") != "umt5":
        raise HeliosError(
            f"{folder / 'text_encoder'} holds a {config.get('model_type')} model; Helios needs its own UMT5 folder."
        )
    tensors = read_tensors(weight_files(folder / "text_encoder", "model.safetensors"))
    return tensors, config, _tokenizer_class(*_tokenizer_file(folder / "tokenizer"))


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], type]:
    header = read_header(path)
    config = umt5_config({key: entry.shape for key, entry in header.tensors.items()}, path)
    tensors, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    tensors, _ = comfy.utils.convert_old_quants(tensors, "", metadata=metadata)
    spiece = tensors.pop(SPIECE_TENSOR)
    if spiece.dtype != torch.uint8:
        raise HeliosError(
            f"{path} has a tokenizer ({SPIECE_TENSOR}) of {spiece.dtype}, not of bytes; download it again."
        )
    return tensors, config, _tokenizer_class(spiece, comfy.text_encoders.spiece_tokenizer.SPieceTokenizer)


def core_config(config: dict[str, Any]) -> dict[str, Any]:
    """A transformers UMT5 configuration in the terms of core's T5."""
    gated = str(config.get("feed_forward_proj", "gated-gelu")).startswith("gated-")
    return {**config, "is_gated_act": gated, "dense_act_fn": "gelu_pytorch_tanh"}


def _reload_patcher(path: Path, **_: Any) -> Any:
    return load_text_encoder(path).patcher


def _model_class(config: dict[str, Any], stored: torch.dtype | None, quantisation: dict[str, Any] | None) -> type:
    extra = {} if quantisation is None else {"quantization_metadata": quantisation}

    class HeliosUMT5(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None, **_: Any):
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=config,
                special_tokens={"end": END_TOKEN, "pad": PAD_TOKEN},
                model_class=comfy.text_encoders.t5.T5,
                enable_attention_masks=True,
                zero_out_masked=True,
                model_options=model_options or {},
            )

    class HeliosTextModel(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device,
                dtype=stored or dtype,
                model_options={**(model_options or {}), **extra},
                name=NAME,
                clip_model=HeliosUMT5,
            )

    return HeliosTextModel


def _tokenizer_file(folder: Path) -> tuple[str, type]:
    spiece = folder / "spiece.model"
    if spiece.is_file():
        return str(spiece), comfy.text_encoders.spiece_tokenizer.SPieceTokenizer
    return str(existing_file(folder / "tokenizer.json")), FastTokenizer


def _tokenizer_class(tokenizer: str | Tensor, reader: type) -> type:
    """``tokenizer`` is a file, or the spiece_model tensor; ``reader`` takes it."""

    class HeliosTokens(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                tokenizer,
                pad_with_end=False,
                embedding_directory=embedding_directory,
                embedding_key=NAME,
                tokenizer_class=reader,
                has_start_token=False,
                pad_to_max_length=False,
                max_length=99999999,
                min_length=MAX_TOKENS,
                pad_token=PAD_TOKEN,
                # The reference reads parentheses as text, not as weights.
                disable_weights=True,
                tokenizer_data=tokenizer_data or {},
            )

        def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> list:
            batches = super().tokenize_with_weights(whole_characters(str(text)), return_word_ids, **kwargs)
            return [self._truncated(batch) for batch in batches]

        def _truncated(self, tokens: list) -> list:
            """512 tokens with the end token last, as the reference's tokenizer cuts them."""
            if len(tokens) <= MAX_TOKENS:
                return tokens
            end = next(i for i in reversed(range(len(tokens))) if tokens[i][0] == END_TOKEN)
            log.warning("The prompt has %d tokens too many for Helios's %d; its end is cut off.",
                        end + 1 - MAX_TOKENS, MAX_TOKENS)  # fmt: skip
            return [*tokens[: MAX_TOKENS - 1], tokens[end]]

    class HeliosTokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(embedding_directory, tokenizer_data or {}, clip_name=NAME, tokenizer=HeliosTokens)

        def state_dict(self) -> dict[str, Tensor]:
            pieces = self.clip_umt5xxl.tokenizer
            return {} if isinstance(pieces, FastTokenizer) else {SPIECE_TENSOR: pieces.serialize_model()}

    return HeliosTokenizer


class FastTokenizer:
    """A tokenizer.json behind the interface of core's SPieceTokenizer."""

    def __init__(self, path: str):
        self._tokenizer = tokenizers.Tokenizer.from_file(path)

    @classmethod
    def from_pretrained(cls, path: str) -> FastTokenizer:
        return cls(path)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text).ids}

    def get_vocab(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
