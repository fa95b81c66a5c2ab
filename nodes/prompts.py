"""Prompt schedule nodes: CONDITIONING whose prompt depends on the chunk."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..helios_core.take.prompts import DEFAULT_BLEND, PromptSchedule, schedule_from_text
from .adapters.graph_checks import check_node
from .adapters.schedule import schedule_of, scheduled, starts_of_rows

MAX_ROWS = 100  # core's own limit for growing inputs; schedules chain, so a film's rows are unlimited
MAX_BLEND = 1000


def _blend_input() -> io.Int.Input:
    return io.Int.Input(
        "blend",
        default=DEFAULT_BLEND,
        optional=True,
        min=0,
        max=MAX_BLEND,
        tooltip="Chunks over which a new prompt takes over, linearly. Released: 3. 0 changes at once.",
    )


def _output() -> io.Conditioning.Output:
    return io.Conditioning.Output(tooltip="Connect it to positive of Sample Chunk or Chunk Chain.")


class HeliosPromptSchedule(io.ComfyNode):
    """One prompt per row, each from its first chunk on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        row = io.Autogrow.TemplatePrefix(
            io.Conditioning.Input("conditioning", tooltip="The prompt of one row."), prefix="row_", min=1, max=MAX_ROWS
        )
        return io.Schema(
            node_id="HeliosPromptSchedule",
            display_name="Helios Prompt Schedule",
            category="Helios/conditioning",
            description="Changes the prompt in the middle of a video: one conditioning per row, each from its first "
            "chunk on. Changing a row leaves the chunks before it exactly as they were.",
            search_aliases=["helios interactive", "helios prompt travel", "prompt schedule"],
            inputs=[
                io.Autogrow.Input(
                    "rows", template=row, tooltip="Prompts in order; a free socket appears as you connect."
                ),
                io.String.Input(
                    "first_chunks",
                    default="0, 7, 14",
                    tooltip="The chunk each row begins at, in the rows' order, the first 0. A chunk is 33 frames, 1.4 "
                    "seconds at 24 fps. Numbers beyond the rows are ignored.",
                ),
                _blend_input(),
                io.Conditioning.Input(
                    "before",
                    optional=True,
                    tooltip="A schedule whose rows come before these; chain schedules for more than 100 rows.",
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def validate_inputs(cls, rows: dict[str, None] | None = None) -> bool:
        # Core hands over growing inputs whether they are named or not, here without values.
        return check_node()

    @classmethod
    def execute(
        cls, rows: dict[str, list], first_chunks: str, blend: int = DEFAULT_BLEND, before: list | None = None
    ) -> io.NodeOutput:
        prompts = [row for row in rows.values() if row is not None]
        new = tuple(zip(starts_of_rows(first_chunks, len(prompts)), prompts, strict=True))
        if before is None:
            return io.NodeOutput(scheduled(PromptSchedule(new, blend)))
        earlier = schedule_of(before)
        return io.NodeOutput(scheduled(PromptSchedule((*earlier.rows, *new), blend, earlier.blends)))


class HeliosPromptScheduleText(io.ComfyNode):
    """A whole schedule as one text, for long lists and for services."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosPromptScheduleText",
            display_name="Helios Prompt Schedule (Text)",
            category="Helios/conditioning",
            description="A prompt schedule as text: a row is its first chunk, a colon and the prompt. The editor in "
            "the node shows the same text row by row.",
            search_aliases=["helios interactive text", "helios prompt travel text", "helios prompt editor"],
            inputs=[
                io.Clip.Input("clip", tooltip="Helios Text Encoder Loader, or core's Load CLIP with type wan."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="0: a calm sea at noon\n7: dark clouds gather over the sea\n14: a storm breaks out",
                    tooltip="One row a line, or rows separated by ' / ': the row's first chunk, a colon, the prompt. "
                    "The first row begins at 0. '7~2: ' gives the row at chunk 7 a blend of its own, 2 chunks.",
                ),
                _blend_input(),
            ],
            outputs=[_output()],
        )

    @classmethod
    def validate_inputs(cls) -> bool:
        return check_node()

    @classmethod
    def execute(cls, clip: Any, text: str, blend: int = DEFAULT_BLEND) -> io.NodeOutput:
        # Parsed and checked whole before the first row is encoded.
        schedule = schedule_from_text(text, blend)
        encoded = schedule.encoded(lambda prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)))
        return io.NodeOutput(scheduled(encoded))
