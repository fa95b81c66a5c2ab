"""GGUF's packed weights as core's own quantised tensors: floats while a layer works, patched by core's LoRA code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor, register_layout_class
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout
from torch import Tensor, nn

from ...helios_core.checkpoint.packed import FORMS, Form, pack, unpack
from ...helios_core.checkpoint.quantised import FORMAT_MARKER, layer_formats, packed_form


class _PackedLayout(QuantizedLayout):
    """How core keeps, moves, patches and saves a weight of one form."""

    form: Form

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        pass

    @classmethod
    def quantize(cls, tensor: Tensor, scale: Any = None, stochastic_rounding: int = 0, **_: Any) -> tuple[Tensor, Any]:
        """[out,in] -> bytes; core rounds by chance after a patch, so that small changes are kept on average."""
        packed = pack(cls.form, tensor, stochastic_rounding or None)
        return packed, cls.params(tensor.dtype, tuple(tensor.shape), tensor.device)

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Any) -> Tensor:
        return unpack(cls.form, qdata, params.orig_dtype)

    @classmethod
    def params(cls, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> Any:
        """Scales are in the blocks; core's base class wants one beside them."""
        return cls.Params(scale=torch.ones((), device=device), orig_dtype=dtype, orig_shape=shape)

    @classmethod
    def get_plain_tensors(cls, qtensor: Any) -> tuple[Tensor, ...]:
        return (qtensor._qdata,)

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Any) -> dict[str, Tensor]:
        return {"": qdata}


_LAYOUTS = {form.name: type(f"Helios{name}Layout", (_PackedLayout,), {"form": form}) for name, form in FORMS.items()}
for _layout in _LAYOUTS.values():
    register_layout_class(_layout.__name__, _layout)


def with_packed_weights(linear: type[nn.Module]) -> type[nn.Module]:
    """Core's Linear of mixed precision, for packed weights too."""

    class Linear(linear):  # type: ignore[misc,valid-type]
        def _load_from_state_dict(self, state_dict: dict, prefix: str, *arguments: Any) -> None:
            form = _form_of(state_dict, prefix)
            if form is None:
                super()._load_from_state_dict(state_dict, prefix, *arguments)
                return
            del state_dict[prefix.removesuffix(".") + FORMAT_MARKER]
            stored = state_dict.pop(f"{prefix}weight")
            layout = _LAYOUTS[form.name]
            self.quant_format, self.layout_type = form.name, layout.__name__
            # No product of packed numbers: the layer works in floats.
            self._full_precision_mm = True
            shape = (self.out_features, self.in_features)
            params = layout.params(self.factory_kwargs["dtype"], shape, stored.device)
            self.weight = nn.Parameter(QuantizedTensor(stored, layout.__name__, params), requires_grad=False)
            nn.Module._load_from_state_dict(self, state_dict, prefix, *arguments)
            missing = arguments[2]
            if f"{prefix}weight" in missing:
                missing.remove(f"{prefix}weight")

    return Linear


def _form_of(state_dict: dict, prefix: str) -> Form | None:
    key = prefix.removesuffix(".") + FORMAT_MARKER
    if key not in state_dict:
        return None
    (found,) = layer_formats({key: state_dict[key]}, {}, prefix).values()
    return packed_form(found)
