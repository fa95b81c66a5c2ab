"""The errors that end a `run.py` command with one sentence instead of a traceback."""

from __future__ import annotations


class SetupError(Exception):
    """Something the user can act on; the message is one sentence that names the remedy."""


class PromptRejectedError(SetupError):
    """ComfyUI refused a workflow; `status` is the HTTP status and `body` the decoded answer."""

    def __init__(self, message: str, status: int, body: dict) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class ExecutionFailedError(SetupError):
    """A queued workflow ended with an error or was interrupted; the message is the node's own."""


class ServerDiedError(SetupError):
    """The ComfyUI process ended (or never answered); the message ends with its last log lines."""
