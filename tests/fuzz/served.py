"""What may come of a graph that a real server is given: HTTP 400, one sentence, or a success of numbers."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from helios_fuzz_oracles import HANG_SECONDS, check_sentence, count

from helios_setup.server import OPENER

PACK = "/custom_nodes/"
# Errors that core finds and words itself.
CORE_ERRORS = {"required_input_missing", "bad_linked_input", "return_type_mismatch", "invalid_input_type",
               "value_smaller_than_min", "value_bigger_than_max", "value_not_in_list", "dependency_cycle"}  # fmt: skip


def attempt(server, graph: dict[str, Any]) -> str:
    """Queues a graph, checks what comes of it, and says in a word what that was."""
    begun = time.monotonic()
    status, body = server.post_raw("/prompt", {"prompt": graph, "client_id": server.client_id})
    assert time.monotonic() - begun < HANG_SECONDS, "validation hangs"
    assert status in (200, 400), f"HTTP {status}"
    refused = body.get("node_errors") or {}
    for report in refused.values():
        for error in report["errors"]:
            check_validation(report["class_type"], error)
    if status == 400:
        count("HTTP 400")
        return "HTTP 400"
    entry = finished(server, body["prompt_id"])
    (error,) = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"] or [None]
    if error is None:
        count("ran")
        # Core runs the outputs that it does not refuse.
        assert nonfinite(graph) <= refused.keys(), "NaN or an infinity was rendered as a success"
        return "ran"
    count("one sentence")
    check_execution(error)
    return "one sentence"


def finished(server, prompt: str) -> dict[str, Any]:
    """The prompt's history entry; it ends by itself, and the server answers all the while."""
    deadline = time.monotonic() + 2 * HANG_SECONDS
    pause = 0.02
    while time.monotonic() < deadline:
        with OPENER.open(f"{server.url}/history/{prompt}", timeout=HANG_SECONDS) as answer:
            entry = json.load(answer).get(prompt)
        if entry is not None:
            return entry
        time.sleep(pause)
        pause = min(0.2, 1.5 * pause)
    server.interrupt()
    raise AssertionError("not done: a hang")


def check_validation(kind: str, error: dict[str, Any]) -> None:
    if error["type"] in CORE_ERRORS:
        return
    if error["type"].startswith("exception_during_"):
        # Core reports here what it met while it followed a link to nowhere; of ours, only sentences.
        if error["extra_info"].get("exception_type", "").endswith(".HeliosError"):
            check_sentence(error["details"])
            return
        assert not any(PACK in line for line in error["extra_info"].get("traceback", ())), f"{kind}: {error}"
        return
    assert error["type"] == "custom_validation_failed", f"{kind}: {error}"
    if kind.startswith("Helios"):
        name, _, sentence = error["details"].partition(" - ")
        check_sentence(sentence or name)


def check_execution(error: dict[str, Any]) -> None:
    """Ours says one sentence; a core node's failure is its own, unless our code is on its stack."""
    ours = error["node_type"].startswith("Helios") or any(PACK in line for line in error["traceback"])
    if ours:
        kind, message = error["exception_type"], error["exception_message"]
        assert kind.rpartition(".")[2] in ("HeliosError", "ValueError"), f"{error['node_type']}: {kind}: {message:.500}"
        check_sentence(message.strip())


def nonfinite(graph: dict[str, Any]) -> set[str]:
    """The Helios nodes with an input that is NaN or an infinity."""
    ours = {key: item["inputs"].values() for key, item in graph.items() if item["class_type"].startswith("Helios")}
    return {key for key, values in ours.items() if any(isinstance(x, float) and not math.isfinite(x) for x in values)}
