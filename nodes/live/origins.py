"""Where a take came from and where its film went: the queued graph, its workflow, an address of the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args


def film_address(path: Path | None) -> dict[str, str] | None:
    """A film in the output folder as core's ``/view`` names it; None for one that lies elsewhere."""
    output = folder_paths.get_output_directory()
    if path is None or not folder_paths.is_within_directory(output, str(path)):
        return None
    folder = os.path.relpath(path.parent, output)
    return {"filename": path.name, "subfolder": "" if folder == "." else folder.replace(os.sep, "/"), "type": "output"}


def queued_graph(hidden: Any) -> dict[str, Any] | None:
    """The graph as it was queued; None where metadata is not to be written."""
    prompt = getattr(hidden, "prompt", None)
    if not prompt or args.disable_metadata:
        return None
    extra = getattr(hidden, "extra_pnginfo", None)
    return {"prompt": prompt, "workflow": extra.get("workflow") if isinstance(extra, Mapping) else None}


def workflow_id(extra_pnginfo: Any) -> str | None:
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, Mapping) else None
    found = workflow.get("id") if isinstance(workflow, Mapping) else None
    return found if isinstance(found, str) else None
