"""What Base, Mid and Distilled are, in one table, and the shape of a chunk that all three share.

Needs Python alone, so that set-up can read it before any package is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHUNK_FRAMES, CHUNK_LATENT_FRAMES = 33, 9
LATENT_CHANNELS, LATENT_SCALE = 16, 8
RELEASED_SIZE = (640, 384)  # width and height in pixels
PIXELS_PER_TOKEN = 16
PYRAMID_MULTIPLE = 64  # pixels that the released three stages divide
FPS = 24.0

_FLOW = {"num_train_timesteps": 1000, "shift": 1.0, "gamma": 1 / 3, "prediction_type": "flow_prediction",
         "use_flow_sigmas": True, "use_dynamic_shifting": True}  # fmt: skip
_UNIPC = {"_class_name": "HeliosScheduler", **_FLOW, "thresholding": False, "solver_order": 2, "predict_x0": True,
          "solver_type": "bh2", "lower_order_final": True, "disable_corrector": [], "solver_p": None,
          "scheduler_type": "unipc", "time_shift_type": "exponential"}  # fmt: skip
_PYRAMID = {"stages": 3, "stage_range": [0, 1 / 3, 2 / 3, 1]}


@dataclass(frozen=True)
class Variant:
    """One released model and the settings it is released with.

    Attributes:
        repository: on the Hugging Face hub.
        pipeline_class: what model_index.json names.
        sampler: the first word of its sampler's class and node: DMD for DMDSampler and Helios DMD Sampler.
        steps: network steps of each stage, coarse to fine.
        guidance_scale: 1 is no guidance.
        num_frames: of a clip, where the caller says nothing.
        zero_star: whether guidance is CFG-Zero*.
        scheduler: the released scheduler_config.json.
    """

    name: str
    repository: str
    pipeline_class: str
    sampler: str
    steps: tuple[int, ...]
    guidance_scale: float
    num_frames: int
    zero_star: bool
    scheduler: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """The released folder's name."""
        return self.repository.rpartition("/")[2]


BASE = Variant(
    name="base",
    repository="BestWishYsh/Helios-Base",
    pipeline_class="HeliosPipeline",
    sampler="Base",
    steps=(50,),
    guidance_scale=5.0,
    num_frames=99,
    zero_star=False,
    scheduler={**_UNIPC, "stages": 1, "stage_range": [0, 1]},
)
MID = Variant(
    name="mid",
    repository="BestWishYsh/Helios-Mid",
    pipeline_class="HeliosPyramidPipeline",
    sampler="Pyramid",
    steps=(20, 20, 20),
    guidance_scale=5.0,
    num_frames=99,
    zero_star=True,
    scheduler={**_UNIPC, **_PYRAMID},
)
DISTILLED = Variant(
    name="distilled",
    repository="BestWishYsh/Helios-Distilled",
    pipeline_class="HeliosPyramidPipeline",
    sampler="DMD",
    steps=(2, 2, 2),
    guidance_scale=1.0,
    num_frames=240,
    zero_star=False,
    scheduler={"_class_name": "HeliosDMDScheduler", **_FLOW, **_PYRAMID, "time_shift_type": "linear"},
)
VARIANTS = {variant.name: variant for variant in (BASE, MID, DISTILLED)}
DEFAULT = DISTILLED  # where nothing says which
