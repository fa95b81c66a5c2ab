"""HELIOS_HISTORY nodes: where a video begins, and history for core's own samplers."""

from __future__ import annotations

import node_helpers
from comfy_api.latest import io

from ..helios_core.take.history import History
from ..helios_core.variants import RELEASED_SIZE
from .adapters.graph_checks import check_node
from .adapters.model import HISTORY_KEY

HistoryType = io.Custom("HELIOS_HISTORY")

# The released size; the step is what a 3-stage pyramid needs.
DEFAULT_WIDTH, DEFAULT_HEIGHT = RELEASED_SIZE
SIZE_STEP = 16
MAX_SIZE = 4096
MAX_SEED = 0xFFFFFFFFFFFFFFFF


def size_inputs() -> list[io.Input]:
    """Width and height of the video, the same in every node that begins one."""
    return [
        io.Int.Input(
            "width",
            default=DEFAULT_WIDTH,
            optional=True,
            min=SIZE_STEP,
            max=MAX_SIZE,
            step=SIZE_STEP,
            tooltip="Width of the video in pixels. 640 is what Helios was trained on. A 3-stage sampler (Mid, "
            "Distilled) needs a multiple of 64, Base a multiple of 16.",
        ),
        io.Int.Input(
            "height",
            default=DEFAULT_HEIGHT,
            optional=True,
            min=SIZE_STEP,
            max=MAX_SIZE,
            step=SIZE_STEP,
            tooltip="Height of the video in pixels. 384 is what Helios was trained on. A 3-stage sampler (Mid, "
            "Distilled) needs a multiple of 64, Base a multiple of 16.",
        ),
    ]


def seed_input(tooltip: str, optional: bool = False) -> io.Int.Input:
    """A seed that stays as it is from run to run: the same seed gives the same video."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        optional=optional,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=tooltip,
    )


class HeliosEmptyHistory(io.ComfyNode):
    """Begins a text-to-video take: there is nothing before chunk 0."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosEmptyHistory",
            display_name="Helios Empty History (Text to Video)",
            category="Helios/history",
            description="Begins a text-to-video take of the given size: there is nothing before its first chunk.",
            search_aliases=["helios t2v", "helios empty latent", "helios start"],
            inputs=[
                *size_inputs(),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    optional=True,
                    min=1,
                    max=64,
                    tooltip="How many videos are made at once, each with its own noise from the one seed.",
                ),
            ],
            outputs=[HistoryType.Output(display_name="history", tooltip="Connect it to Sample Chunk or Chunk Chain.")],
        )

    @classmethod
    def validate_inputs(cls) -> bool:
        return check_node()

    @classmethod
    def execute(cls, width: int = DEFAULT_WIDTH, height: int = DEFAULT_HEIGHT, batch_size: int = 1) -> io.NodeOutput:
        return io.NodeOutput(History.empty(width, height, batch_size))


class HeliosApplyHistory(io.ComfyNode):
    """Puts a history into conditioning, for core's SamplerCustomAdvanced and guiders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosApplyHistory",
            display_name="Helios Apply History",
            category="Helios/history",
            description="Puts a history into both conditionings, so that core's own guiders and samplers continue "
            "the video. Not needed with Sample Chunk or Chunk Chain, which do it themselves.",
            search_aliases=["helios conditioning", "helios custom sampler"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="What the chunk should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show; used where cfg is above 1."),
                HistoryType.Input("history", tooltip="What came before the chunk."),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="Connect it to positive of a guider, such as core's CFGGuider."
                ),
                io.Conditioning.Output(display_name="negative", tooltip="Connect it to negative of the same guider."),
            ],
        )

    @classmethod
    def validate_inputs(cls) -> bool:
        return check_node()

    @classmethod
    def execute(cls, positive: list, negative: list, history: History) -> io.NodeOutput:
        return io.NodeOutput(*(with_history(c, history) for c in (positive, negative)))


def with_history(conditioning: list, history: History) -> list:
    """A copy of a CONDITIONING that carries ``history``."""
    return node_helpers.conditioning_set_values(conditioning, {HISTORY_KEY: history})
