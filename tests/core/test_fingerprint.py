"""Fingerprints of values and files."""

import functools
import os
import shutil
import subprocess
import sys

import torch
from safetensors.torch import save_file

from helios_core.take.fingerprint import file_fingerprint, fingerprint
from helios_core.take.history import History


def test_fingerprints_tell_values_apart():
    values = [
        None, 0, False, 1, 1.0, "1", b"1", [1], [[1]], [1, 2], [2, 1], {"a": 1}, {"a": 2}, {1}, {1, 2},
        torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float16), torch.tensor([0.0, 1.0]),
        torch.nn.Linear(2, 2, bias=False), lambda x: x + 1, lambda x: x + 2, functools.partial(int, base=2),
        ["ab", "c"], ["a", "bc"], History.empty(64, 64), History.empty(64, 128), len, max,
    ]  # fmt: skip
    assert len({fingerprint(value) for value in values}) == len(values)


def test_fingerprints_see_closures_slots_and_module_weights():
    def scaled(by):
        return lambda x: x * by

    class Slotted:
        __slots__ = ("value",)

        def __init__(self, value):
            self.value = value

    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for a, b in ((scaled(1), scaled(2)), (Slotted(1), Slotted(2)), (one, two)):
        assert fingerprint(a) != fingerprint(b)
    assert fingerprint(scaled(1)) == fingerprint(scaled(1))
    assert fingerprint(one, known=lambda v: "base" if v is one else None) == fingerprint(
        two, known=lambda v: "base" if v is two else None
    )


def test_functions_differ_by_the_names_they_use():
    def first(a):
        return a["x"].sin()

    def second(a):
        return a["x"].cos()

    second.__qualname__ = first.__qualname__
    assert fingerprint(first) != fingerprint(second)


def test_fingerprints_are_equal_in_another_process():
    values = "{'b': {3, 1, 'x'}, 'a': [torch.arange(5), 1.5, torch.float16], 'c': DMDSampler()}"
    program = (
        "import torch; from helios_core.take.fingerprint import fingerprint; "
        "from helios_core.samplers import DMDSampler; "
        f"print(fingerprint({values}))"
    )
    results = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
        )
        results.add(run.stdout)
    assert len(results) == 1


def test_cycles_end():
    value: list = [1]
    value.append(value)
    assert fingerprint(value) == fingerprint(value)


def test_file_fingerprint_sees_every_tensor_and_not_the_name(tmp_path):
    tensors = {f"t{i}": torch.full((2000, 100), float(i)) for i in range(4)}
    save_file(tensors, tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "copy.safetensors")
    expected = file_fingerprint(tmp_path / "a.safetensors")
    assert file_fingerprint(tmp_path / "copy.safetensors") == expected
    for name, tensor in tensors.items():
        save_file({**tensors, name: tensor + 1e-3}, tmp_path / f"{name}.safetensors")
        assert file_fingerprint(tmp_path / f"{name}.safetensors") != expected
    other = tmp_path / "other.bin"
    other.write_bytes(bytes(range(256)) * 8192)
    before = file_fingerprint(other)
    other.write_bytes(bytes(reversed(range(256))) * 8192)
    assert file_fingerprint(other) != before, "a file that changed is read again"
