"""A real ComfyUI process that this process owns: start, queue, follow, interrupt, stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helios_setup.errors import ExecutionFailedError, PromptRejectedError, ServerDiedError
from helios_setup.events import Event, EventStream
from helios_setup.paths import WINDOWS

LOOPBACK = "127.0.0.1"
HTTP_OK = 200
DEATH_SECONDS = 5.0
LONGEST_PAUSE = 4  # seconds between two events after which the history is asked
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# A proxy from the environment must not be asked for the loopback address.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A loopback port nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


class ComfyServer:
    """ComfyUI on a loopback port, started by `start` or `with`, stopped by `stop`, `kill` or leaving `with`.

    Args:
        tree: the ComfyUI folder (not written to when the arguments name other directories).
        python: the interpreter that has ComfyUI's requirements.
        log: file that receives the process's stdout and stderr.
        arguments: ComfyUI's own command-line options, e.g. `--cpu` or `--base-directory F`.
        port: the port, or None for a free one.
    """

    def __init__(
        self, tree: Path, python: Path, log: Path, arguments: Sequence[str] = (), port: int | None = None
    ) -> None:
        self.tree = tree
        self.log_file = log
        self.port = port or free_port()
        self.client_id = uuid.uuid4().hex
        self._command = [
            *(str(python), str(tree / "main.py"), "--listen", LOOPBACK, "--port", str(self.port)),
            *("--disable-api-nodes", "--disable-auto-launch", *arguments),
        ]
        self._process: subprocess.Popen | None = None
        self._stream: EventStream | None = None

    # -- process -------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() first"
        return self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float = 240.0) -> ComfyServer:
        """Start the process and wait until it answers and its websocket is open.

        Raises:
            ServerDiedError: it ended, or did not answer within `timeout` seconds.
        """
        # Own group, so that Ctrl-C in the terminal reaches us only and we stop it in order.
        group: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.tree, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, **group,
            )  # fmt: skip
        try:
            self._wait_until_ready(time.monotonic() + timeout)
            self._stream = EventStream(f"ws://{LOOPBACK}:{self.port}/ws?clientId={self.client_id}")
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_ready(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                if self._request("/system_stats", timeout=5)[0] == HTTP_OK:
                    return
            except OSError:
                time.sleep(0.2)
        raise ServerDiedError(f"ComfyUI does not answer at {self.url}; its log ends with:\n{self.log_tail()}")

    def _check_alive(self) -> None:
        if not self.alive():
            code = self._process.returncode if self._process else None
            tail = self.log_tail()
            raise ServerDiedError(f"ComfyUI ended with exit code {code}; its log ends with:\n{tail}")

    def stop(self) -> None:
        """End the process this object started, gently at first; safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        self._close_stream()

    def kill(self) -> None:
        """End the process at once, as a crash would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
        self._close_stream()

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def log(self) -> str:
        """Everything the process printed so far, without colours."""
        return ANSI_COLOUR.sub("", self.log_file.read_text(encoding="utf-8", errors="replace"))

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    # -- HTTP ----------------------------------------------------------------------------------------

    def _request(self, path: str, body: object = None, timeout: float = 60.0) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with OPENER.open(request, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def _ask(self, path: str, body: object = None) -> tuple[int, bytes]:
        """`_request` of a server that has been ready: a broken connection means that it died."""
        try:
            return self._request(path, body)
        except (OSError, http.client.HTTPException):
            # The connection breaks shortly before the process is seen to have ended.
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self._process is not None:
                    self._process.wait(DEATH_SECONDS)
            self._check_alive()
            raise

    def content(self, path: str) -> bytes:
        """What lies at a path."""
        return self._ask(path)[1]

    def get(self, path: str) -> dict:
        """The JSON at a path such as `/queue`."""
        return json.loads(self.content(path))

    def post_raw(self, path: str, body: object) -> tuple[int, dict]:
        """POST JSON and return the status with the decoded answer ({} when it is not JSON)."""
        status, answer = self._ask(path, {} if body is None else body)
        try:
            return status, json.loads(answer)
        except ValueError:
            return status, {}

    def object_info(self, node: str | None = None) -> dict:
        """`/object_info` of every node, or of one: `object_info("SaveVideo")["input"]`."""
        if node is None:
            return self.get("/object_info")
        return self.get(f"/object_info/{urllib.parse.quote(node)}")[node]

    def interrupt(self) -> None:
        """Interrupt whatever runs now."""
        self.post_raw("/interrupt", {})

    # -- prompts -------------------------------------------------------------------------------------

    def queue(self, prompt: dict) -> str:
        """Queue an API-format workflow and return its prompt id.

        Raises:
            PromptRejectedError: HTTP 400, or a node that ComfyUI dropped because of its input.
        """
        status, body = self.post_raw("/prompt", {"prompt": prompt, "client_id": self.client_id})
        if status != HTTP_OK or body.get("node_errors"):
            raise PromptRejectedError(rejection(prompt, body) or f"ComfyUI answered {status}.", status, body)
        return body["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600.0, on_event: Callable[[Event], None] | None = None) -> dict:
        """Follow a prompt to its end and return its history entry, also when it failed.

        Raises:
            ServerDiedError: the process ended meanwhile.
            TimeoutError: `timeout` seconds passed.
        """
        assert self._stream is not None, "start() first"
        deadline = time.monotonic() + timeout
        seen = pauses = 0
        while time.monotonic() < deadline:
            self._check_alive()
            new = self._stream.wait(seen, timeout=1.0)
            seen, pauses = seen + len(new), 0 if new else pauses + 1
            for event in new:
                if on_event and event.prompt_id == prompt_id:
                    on_event(event)
            # Asked too where the queue has changed, because only whoever queued a prompt is told of its end, and at
            # long pauses: an end whose event was missed must not hang, a late one is still waited for.
            if pauses > LONGEST_PAUSE or any(ends(event, prompt_id) or event.type == "status" for event in new):
                entry = self.get(f"/history/{prompt_id}").get(prompt_id)
                if entry is not None:
                    return entry
        raise TimeoutError(f"Prompt {prompt_id} did not end within {timeout:g} s.")

    def run(self, prompt: dict, timeout: float = 600.0, on_event: Callable[[Event], None] | None = None) -> dict:
        """`queue` and `wait`; the history entry of a success.

        Raises:
            ExecutionFailedError: a node failed, or the prompt was interrupted.
        """
        entry = self.wait(self.queue(prompt), timeout, on_event)
        reason = failure(entry)
        if reason is not None:
            raise ExecutionFailedError(reason)
        return entry

    def events(self, prompt_id: str | None = None, kind: str | None = None) -> list[Event]:
        """Events so far, optionally of one prompt and of one type ("preview" for binary previews)."""
        assert self._stream is not None, "start() first"
        return [
            event
            for event in list(self._stream.events)
            if prompt_id in (None, event.prompt_id) and kind in (None, event.type)
        ]

    def wait_for_event(self, condition: Callable[[Event], bool], timeout: float = 60.0) -> Event:
        """The first event, past or coming, that satisfies `condition`.

        Raises:
            ServerDiedError: the process ended meanwhile.
            TimeoutError: none came in `timeout` seconds.
        """
        assert self._stream is not None, "start() first"
        deadline = time.monotonic() + timeout
        seen = 0
        while time.monotonic() < deadline:
            self._check_alive()
            new = self._stream.wait(seen, timeout=1.0)
            seen += len(new)
            for event in new:
                if condition(event):
                    return event
        raise TimeoutError(f"No such event came within {timeout:g} s.")


def stop_on_terminate() -> None:
    """Let SIGTERM unwind the stack, so that `finally` blocks stop the server."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    if not WINDOWS:
        signal.signal(signal.SIGHUP, leave)


def ends(event: Event, prompt_id: str) -> bool:
    """Whether ComfyUI has finished a prompt, and written its history, with this event."""
    return event.type == "executing" and event.prompt_id == prompt_id and event.data.get("node") is None


def rejection(prompt: dict, body: dict) -> str:
    """The reasons of an HTTP 400 (or of `node_errors` beside a 200), one sentence a line."""
    lines = []
    for node_id, report in (body.get("node_errors") or {}).items():
        name = prompt.get(node_id, {}).get("class_type", report.get("class_type", "?"))
        for error in report.get("errors", ()):
            lines.append(f"{name} (node {node_id}): {sentence(error)}")
    if not lines and isinstance(body.get("error"), dict):
        lines.append(sentence(body["error"]))
    return "\n".join(lines)


def sentence(error: dict) -> str:
    """The message of one of ComfyUI's error objects, with its details."""
    return ": ".join(part for part in (error.get("message"), error.get("details")) if part)


def failure(entry: dict) -> str | None:
    """Why the prompt of a history entry failed, naming the node, or None for a success."""
    status = entry["status"]
    if status["status_str"] == "success":
        return None
    for kind, data in status["messages"]:
        if kind == "execution_error":
            return f"{data['node_type']} (node {data['node_id']}): {data['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return f"Interrupted in {data['node_type']} (node {data['node_id']})."
    return "ComfyUI gave no reason."


def output_files(entry: dict, folder: Path) -> list[Path]:
    """Files a prompt saved, below the server's output folder, in the order of the history entry."""
    return [
        folder / item.get("subfolder", "") / item["filename"]
        for output in entry["outputs"].values()
        for items in output.values()
        if isinstance(items, list)
        for item in items
        if isinstance(item, dict) and item.get("type") == "output"
    ]
