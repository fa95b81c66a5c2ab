"""What a node warns of while it works: what runs, but not as the model was made for. Shown under it, and logged."""

from __future__ import annotations

import logging

from comfy_execution.utils import get_executing_context
from server import PromptServer

log = logging.getLogger(__name__)

# What the node at work was warned of, by its prompt and id. Core runs one node at a time.
_told: dict[tuple[str, str], list[str]] = {}


def warn(sentence: str) -> None:
    """Tells ``sentence`` once in a run of the node at work."""
    context = get_executing_context()
    if context is None:
        log.warning(sentence)
        return
    node = (context.prompt_id, context.node_id)
    if node not in _told:
        _told.clear()
    told = _told.setdefault(node, [])
    if sentence in told:
        return
    told.append(sentence)
    log.warning(sentence)
    # Core shows this text under the node, in place of the one before.
    PromptServer.instance.send_progress_text("\n".join(told), context.node_id)
