"""Diffusers' pyramid pipeline as an oracle that gives the same noise on every processor."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import torch
from diffusers import HeliosPyramidPipeline
from torch import Tensor

RELEASED_GAMMA = 1 / 3
# What LAPACK makes of the block covariance at the released gamma where it runs with AVX-512. The matrix is singular
# and its last pivot nothing but rounding: 1.5 * 2^-23 there, negative with AVX2, where LAPACK (and so diffusers)
# ends with "not positive-definite".
RELEASED_FACTOR = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0],
        [-1 / 3, math.sqrt(8 / 9), 0.0, 0.0],
        [-1 / 3, -math.sqrt(2 / 9), math.sqrt(2 / 3), 0.0],
        [-1 / 3, -math.sqrt(2 / 9), -math.sqrt(2 / 3), math.sqrt(1.5 * 2**-23)],
    ]
)


class ReferencePyramid(HeliosPyramidPipeline):
    """HeliosPyramidPipeline whose block noise does not depend on the processor's rounding; nothing else differs."""

    def sample_block_noise(self, *shape: int, **options: Any) -> Tensor:
        if not math.isclose(self.scheduler.config.gamma, RELEASED_GAMMA):
            return super().sample_block_noise(*shape, **options)
        with patch.object(torch.linalg, "cholesky", RELEASED_FACTOR.to):
            return super().sample_block_noise(*shape, **options)
