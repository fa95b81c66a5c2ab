"""LoRA files of any training tool, as changes to our transformer's parameters.

Formats: diffusers and PEFT (``transformer.X.lora_A.weight``), core's and Wan's (``diffusion_model.X.lora_down``),
musubi and kohya (``lora_unet_X_with_underscores``), bare names, and the training code's own partial weights.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import HeliosError, reason, shortened
from ..settings import parse_object
from .folder import existing_file, read_tensors
from .header import read_header
from .load import quoted
from .names import native_name, underscored_names

SAFE_SUFFIXES = (".safetensors", ".sft")
_ROLES = {"lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up", "lora.down": "down", "lora.up": "up",
          "lora_mid": "mid", "alpha": "alpha", "dora_scale": "dora", "diff": "diff", "diff_b": "diff_b"}  # fmt: skip
_KEY = re.compile(
    r"(?P<module>.+?)\.(?P<role>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|lora_mid|alpha|dora_scale|diff_b|diff)"
    r"(\.default)?(\.weight)?"
)
_HISTORY_LORA = re.compile(r"(?P<block>.*blocks\.\d+\.attn1\.)(?P<letter>[qkv])_loras\.(?P<role>down|up)\.weight")
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
# The discriminator's, which only training uses.
_IGNORED = ("gan_heads.", "gan_final_head.")


@dataclass
class LowRank:
    """weight += strength * alpha/rank * up @ down; ``alpha`` None stands for the rank."""

    up: Tensor
    down: Tensor
    alpha: float | None = None
    mid: Tensor | None = None
    dora: Tensor | None = None


@dataclass
class LoraFile:
    """What a file changes, by parameter name (ours).

    ``low_rank`` and ``differences`` are added, ``replacements`` stand in the parameter's place. ``unmatched`` are
    keys without a counterpart in this model; ``history_only`` counts low-rank pairs that the training code applies
    to history tokens alone.
    """

    low_rank: dict[str, list[LowRank]] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)
    replacements: dict[str, Tensor] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    history_only: int = 0

    @property
    def count(self) -> int:
        """How many parameters change."""
        return len(self.low_rank.keys() | self.differences.keys() | self.replacements.keys())


def read_lora(path: str | Path, parameters: Mapping[str, tuple[int, ...]]) -> LoraFile:
    """Reads a file and matches it against a model's ``parameters`` (our names and shapes).

    Raises:
        HeliosError: absent, damaged, unsafe to read, made for another model, or nothing in it matches.
    """
    path = existing_file(Path(path))
    tensors, metadata = _read(path)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(_IGNORED)}
    result = match_lora(tensors, parameters, _stated_alphas(metadata, path), path)
    if not result.count:
        raise HeliosError(
            f"{path} has no weights for Helios: none of its {len(tensors)} keys "
            f"({', '.join(map(quoted, sorted(tensors)[:3]))}) names a part of the transformer; choose a Wan 2.1 14B or "
            "Helios LoRA."
        )
    return result


def match_lora(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, tuple[int, ...]],
    alphas: Mapping[str, float],
    path: Path,
) -> LoraFile:
    """Sorts a file's tensors by what they do to which parameter."""
    modules = {name.rsplit(".", 1)[0] for name in parameters}
    table = underscored_names(modules)
    result = LoraFile()
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    keys: dict[tuple[str, str], list[str]] = {}
    for key, tensor in tensors.items():
        replaced = native_name(key)
        if replaced in parameters:
            result.replacements[replaced] = _fitting(tensor, parameters[replaced], key, path)
            continue
        kind, module, role = _parse(key, table)
        if f"{module}.weight" not in parameters:
            result.unmatched.append(key)
            continue
        groups.setdefault((kind, module), {})[role] = tensor
        keys.setdefault((kind, module), []).append(key)
    for (kind, module), group in groups.items():
        if not _apply(result, module, group, alphas.get(module, alphas.get("")), parameters, path):
            result.unmatched.extend(keys[kind, module])
        elif kind == "history":
            result.history_only += 1
    return result


def _parse(key: str, table: Mapping[str, str]) -> tuple[str, str, str]:
    """Kind (``plain`` or ``history``), our module name and role of a key; empty where it is none of a LoRA's."""
    own = _HISTORY_LORA.fullmatch(key)
    if own is not None:
        return "history", _module(f"{own['block']}to_{own['letter']}"), own["role"]
    match = _KEY.fullmatch(key)
    if match is None:
        return "plain", "", ""
    role = _ROLES[match["role"]]
    for prefix in _UNDERSCORED:
        if match["module"].startswith(prefix):
            return "plain", table.get(match["module"].removeprefix(prefix), ""), role
    return "plain", _module(match["module"]), role


def _module(name: str) -> str:
    return native_name(f"{name}.weight").removesuffix(".weight")


def _apply(
    result: LoraFile,
    module: str,
    group: Mapping[str, Tensor],
    stated: float | None,
    parameters: Mapping[str, tuple[int, ...]],
    path: Path,
) -> bool:
    """Adds one module's change; False where its tensors do not make one."""
    weight, used = f"{module}.weight", False
    for role, name in (("diff", weight), ("diff_b", f"{module}.bias")):
        if role in group and name in parameters:
            result.differences[name] = _fitting(group[role], parameters[name], f"{module}.{role}", path)
            used = True
    if "up" not in group or "down" not in group:
        return used
    up, down, mid = group["up"], group["down"], group.get("mid")
    shape = parameters[weight]
    fits = min(up.ndim, down.ndim) > 1 and up.shape[0] == shape[0] and up.shape[1] == down.shape[0]
    if not fits or (mid is None and math.prod(down.shape[1:]) != math.prod(shape[1:])):
        raise HeliosError(
            f"{path} was made for another model: {module} is {list(up.shape)} x {list(down.shape)} there and "
            f"{list(shape)} here; choose a Wan 2.1 14B or Helios LoRA."
        )
    alpha = _number(group["alpha"], f"{module}.alpha", path) if "alpha" in group else stated
    result.low_rank.setdefault(weight, []).append(LowRank(up, down, alpha, mid, group.get("dora")))
    return True


def _number(tensor: Tensor, key: str, path: Path) -> float:
    if tensor.numel() != 1 or not math.isfinite(number := float(tensor)):
        raise HeliosError(
            f"{path} has {shortened(key)} of {list(tensor.shape)}, which is no one number; save it again."
        )
    return number


def _fitting(tensor: Tensor, shape: tuple[int, ...], key: str, path: Path) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise HeliosError(
            f"{path} was made for another model: {key} is {list(tensor.shape)} there and {list(shape)} here; "
            "choose a Helios file."
        )
    return tensor


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix.lower() in SAFE_SUFFIXES:
        return read_tensors([path]), read_header(path).metadata
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own words advise to switch the check off
        raise HeliosError(
            f"{path} cannot be read as plain weights: it holds more, or is damaged; use a .safetensors file."
        ) from None
    # torch's reader of damaged files fails in whatever its parts raise.
    except Exception as error:
        raise HeliosError(
            f"{path} cannot be read as plain weights ({reason(error)}); use a .safetensors file."
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise HeliosError(f"{path} holds something other than named tensors; use a .safetensors file.")
    return {str(key): value for key, value in content.items()}, {}


def _stated_alphas(metadata: Mapping[str, str], path: Path) -> dict[str, float]:
    """Alpha by our module name, and under "" for all others, from the metadata that diffusers writes."""
    if "lora_adapter_metadata" not in metadata:
        return {}
    try:
        content = parse_object(metadata["lora_adapter_metadata"], f"{path}: its lora_adapter_metadata", "save it again")
        found = {key.removeprefix("transformer."): value for key, value in content.items()}
        alphas = {_module(name): float(value) for name, value in (found.get("alpha_pattern") or {}).items()}
        alphas |= {} if found.get("lora_alpha") is None else {"": float(found["lora_alpha"])}
    except HeliosError:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError):
        alphas = {"": math.nan}
    if not all(map(math.isfinite, alphas.values())):
        raise HeliosError(f"{path} has lora_adapter_metadata whose alphas are no numbers; save it again.")
    return alphas
