"""LoRA files of any training tool, sorted by our parameters and renamed to what ComfyUI's own loader reads.

Names: diffusers and PEFT (``transformer.X``), core's and Wan's (``diffusion_model.X``), musubi, kohya and LyCORIS
(``lora_unet_X_with_underscores``), bare ones, and the training code's own partial weights.
Formats: LoRA with or without DoRA, LoHa, LoKr, differences, whole weights.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import HeliosError, reason, shortened
from ..networks.settings import parse_object
from .folder import existing_file, read_tensors
from .header import read_header
from .load import quoted
from .names import native_name, underscored_names

SAFE_SUFFIXES = (".safetensors", ".sft")
KEYS_SHOWN = 20
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
_EXTRA = ("alpha", "dora_scale")
# Decompositions of a 2-dimensional convolution, of which Helios has none.
_TUCKER = ("lora_mid", "hada_t1", "hada_t2", "lokr_t2")
_UP, _DOWN = "lora_up.weight", "lora_down.weight"
# The role of a tensor, as files spell it -> as core's loader does.
_ROLES = {"lora_A": _DOWN, "lora_B": _UP, "lora_down": _DOWN, "lora_up": _UP, "lora.down": _DOWN, "lora.up": _UP}
_ROLES |= {role: role for role in (*_LOHA, *_LOKR, *_EXTRA, *_TUCKER, "diff_b", "diff")}
_KEY = re.compile(rf"(?P<module>.+?)\.(?P<role>{'|'.join(map(re.escape, _ROLES))})(\.default)?(\.weight)?")
_HISTORY_LORA = re.compile(r"\battn1\.([qkv])_loras\.(down|up)\.weight$")
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
# The discriminator's, which only training uses.
_IGNORED = ("gan_heads.", "gan_final_head.")

Adapter = dict[str, Tensor]


@dataclass
class LoraFile:
    """What a file changes, by parameter name (ours).

    ``adapters`` are the tensors of one change each, by the roles of core's loader: ``lora_up.weight``, ``hada_w1_a``,
    ``lokr_w1``, ``alpha``, ... They and ``differences`` are added, ``replacements`` stand in the parameter's place.
    ``unmatched`` are keys without a counterpart in this model; ``history_only`` counts low-rank pairs that the
    training code applies to history tokens alone.
    """

    adapters: dict[str, list[Adapter]] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)
    replacements: dict[str, Tensor] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    history_only: int = 0

    @property
    def count(self) -> int:
        """How many parameters change."""
        return len(self.adapters.keys() | self.differences.keys() | self.replacements.keys())

    def warnings(self) -> list[str]:
        """What of the file acts otherwise than it was trained, in a sentence each."""
        told = []
        if self.unmatched:
            shown = ", ".join(self.unmatched[:KEYS_SHOWN]) + (", ..." if len(self.unmatched) > KEYS_SHOWN else "")
            told.append(f"{len(self.unmatched)} keys match nothing in this model and are skipped: {shown}")
        if self.history_only:
            told.append(
                f"{self.history_only} of its LoRAs (q_loras, k_loras, v_loras) were trained on history tokens only and "
                "now act on all."
            )
        return told


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
    table = underscored_names({name.rsplit(".", 1)[0] for name in parameters})
    result = LoraFile()
    groups: dict[tuple[bool, str], dict[str, str]] = {}
    for key, tensor in tensors.items():
        whole, plain = native_name(key), _HISTORY_LORA.sub(r"attn1.to_\1.lora_\2.weight", key)
        module, role = _parse(plain, table)
        weight = f"{module}.weight"
        changed = {"diff_b": f"{module}.bias", "diff": module if module in parameters else weight}.get(role, "")
        if whole in parameters:
            result.replacements[whole] = _fitting(tensor, parameters[whole], key, path)
        elif changed in parameters:
            result.differences[changed] = _fitting(tensor, parameters[changed], key, path)
        elif weight in parameters:
            groups.setdefault((plain != key, module), {})[role] = key
        else:
            result.unmatched.append(key)
    for (is_history, module), keys in groups.items():
        weight, group = f"{module}.weight", {role: tensors[key] for role, key in keys.items()}
        adapter = _adapter(module, group, parameters[weight], path)
        result.unmatched += [key for role, key in keys.items() if role not in adapter]
        if adapter:
            _add_alpha(adapter, module, alphas.get(module, alphas.get("")), path)
            result.adapters.setdefault(weight, []).append(adapter)
            result.history_only += is_history
    return result


def _parse(key: str, table: Mapping[str, str]) -> tuple[str, str]:
    """Our module name and the role of a key; empty where it is none of a LoRA's."""
    match = _KEY.fullmatch(key)
    if match is None:
        return "", ""
    role = _ROLES[match["role"]]
    for prefix in _UNDERSCORED:
        if match["module"].startswith(prefix):
            return table.get(match["module"].removeprefix(prefix), ""), role
    return _module(match["module"]), role


def _module(name: str) -> str:
    return native_name(f"{name}.weight").removesuffix(".weight")


def _product(group: Adapter, name: str) -> Tensor:
    """A LoKr factor: stored whole, or as two."""
    return group[name].flatten(1) if name in group else group[f"{name}_a"] @ group[f"{name}_b"]


# Each format's roles, and the matrix that a weight changes by.
_FORMATS: tuple[tuple[tuple[str, ...], Callable[[Adapter], Tensor]], ...] = (
    ((_UP, _DOWN), lambda group: group[_UP].flatten(1) @ group[_DOWN].flatten(1)),
    (_LOHA, lambda group: (group[_LOHA[0]] @ group[_LOHA[1]]) * (group[_LOHA[2]] @ group[_LOHA[3]])),
    (_LOKR, lambda group: torch.kron(_product(group, "lokr_w1"), _product(group, "lokr_w2"))),
)


def _adapter(module: str, group: Adapter, shape: tuple[int, ...], path: Path) -> Adapter:
    """Those of a module's tensors that make one change; empty where they make none."""
    for roles, change in _FORMATS:
        found = {role: group[role] for role in roles if role in group}
        try:
            # Shapes alone: the arithmetic is the loader's.
            size = change({role: torch.empty(tensor.shape, device="meta") for role, tensor in found.items()}).shape
        except KeyError:
            continue  # not this format, or half of it
        except (RuntimeError, IndexError):
            size = torch.Size()
        if any(role in group for role in _TUCKER):
            raise HeliosError(f"{path} has {module} in a form for 2-dimensional convolutions; save it without Tucker.")
        if size != (shape[0], math.prod(shape[1:])) or not all(tensor.numel() for tensor in found.values()):
            told = " x ".join(str(list(tensor.shape)) for tensor in found.values())
            raise HeliosError(
                f"{path} was made for another model: {module} is {told} there and {list(shape)} here; choose a "
                "Wan 2.1 14B or Helios LoRA."
            )
        found |= {role: group[role] for role in _EXTRA if role in group}
        for role, tensor in found.items():
            if role != "alpha":
                _check_numbers(tensor, f"{module}.{role}", path)
        # A convolution's factor as a matrix, which makes the loader's Kronecker product right in any dimension.
        found |= {"lokr_w2": found["lokr_w2"].flatten(1)} if "lokr_w2" in found else {}
        return found
    return {}


def _add_alpha(adapter: Adapter, module: str, stated: float | None, path: Path) -> None:
    """Checks the tensor's own alpha, or adds the one that the metadata states."""
    if stated is not None:
        adapter.setdefault("alpha", torch.tensor(stated, dtype=torch.float64))
    alpha = adapter.get("alpha", torch.ones(()))
    if alpha.numel() != 1 or not math.isfinite(float(alpha)):
        raise HeliosError(
            f"{path} has {shortened(f'{module}.alpha')} of {list(alpha.shape)}, which is no one number; save it again."
        )


def _fitting(tensor: Tensor, shape: tuple[int, ...], key: str, path: Path) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise HeliosError(
            f"{path} was made for another model: {key} is {list(tensor.shape)} there and {list(shape)} here; "
            "choose a Helios file."
        )
    _check_numbers(tensor, key, path)
    return tensor


def _check_numbers(tensor: Tensor, key: str, path: Path) -> None:
    if not tensor.is_floating_point():
        raise HeliosError(f"{path} has {quoted(key)} as {tensor.dtype}, which is not floating-point; save it again.")


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
