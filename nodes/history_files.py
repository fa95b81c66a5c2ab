"""Save and load a history: a take goes on where it stopped, in another session or on another machine."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..helios_core.errors import HeliosError
from ..helios_core.take.history import History
from ..helios_core.take.history_file import load_history, save_history
from .adapters.history_paths import SUFFIX, history_path
from .adapters.model_files import check_prefix, save_path
from .history import HistoryType

SUBFOLDER = "helios_history"
OUTPUT_MARK = " [output]"


class HeliosSaveHistory(io.ComfyNode):
    """Writes a history to ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosSaveHistory",
            display_name="Helios Save History",
            category="Helios/history",
            description="Saves a history as one file, with sizes, chunk index and random state: loaded again, the take "
            "continues exactly as if it had never stopped.",
            search_aliases=["helios checkpoint take", "helios save state"],
            is_output_node=True,
            inputs=[
                HistoryType.Input("history", tooltip="The history of the last finished chunk."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{SUBFOLDER}/take",
                    tooltip="Where in the output folder, as in Save Video. Load History lists what lies in "
                    f"{SUBFOLDER}.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file, as Load History names it.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        try:
            check_prefix(filename_prefix or "")
        except HeliosError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, history: History, filename_prefix: str) -> io.NodeOutput:
        check_prefix(filename_prefix)
        folder, name, counter, subfolder = save_path(filename_prefix)
        file = f"{name}_{counter:05}_{SUFFIX}"
        save_history(history, Path(folder) / file)
        shown = (Path(subfolder) / file).as_posix() + OUTPUT_MARK
        return io.NodeOutput(shown, ui=ui.PreviewText(shown))


class HeliosLoadHistory(io.ComfyNode):
    """Reads a history that Helios Save History wrote."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosLoadHistory",
            display_name="Helios Load History",
            category="Helios/history",
            description="Loads a saved history, so that Sample Chunk or Chunk Chain continue that take.",
            search_aliases=["helios resume take", "helios load state"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=saved_histories(),
                    tooltip=f"A history file in the input folder, or in {SUBFOLDER} of the output folder.",
                )
            ],
            outputs=[HistoryType.Output(display_name="history", tooltip="Connect it to Sample Chunk or Chunk Chain.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        try:
            history_path(file)
        except HeliosError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str) -> tuple[str, int]:
        """A file saved again under the same name is another history."""
        return file, history_path(file).stat().st_mtime_ns

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(load_history(history_path(file)))


def saved_histories() -> list[str]:
    """Choices of Load History."""
    found = sorted(path.name for path in Path(folder_paths.get_input_directory()).glob(f"*{SUFFIX}"))
    output = Path(folder_paths.get_output_directory())
    saved = sorted(path.relative_to(output).as_posix() for path in (output / SUBFOLDER).glob(f"*{SUFFIX}"))
    return found + [name + OUTPUT_MARK for name in saved]
