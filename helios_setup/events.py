"""ComfyUI's websocket, followed on a thread: every event of one client, in order."""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import time
from dataclasses import dataclass, field

PREVIEW_IMAGE = 1
PROGRESS_TEXT = 3
PREVIEW_IMAGE_WITH_METADATA = 4


@dataclass(frozen=True)
class Event:
    """One websocket message; a binary preview has its metadata in `data` and its file in `image`.

    Attributes:
        type: ComfyUI's event name (`progress_state`, `executed`, `execution_error`, ...), "preview" or "progress_text".
        data: the decoded JSON; node and text of a "progress_text", which core shows under the node.
        image: the encoded JPEG or PNG of a preview, otherwise empty.
        at: `time.monotonic()` of its arrival, in seconds.
    """

    type: str
    data: dict
    image: bytes = b""
    at: float = field(default_factory=time.monotonic)

    @property
    def prompt_id(self) -> str | None:
        return self.data.get("prompt_id")


def decode(message: str | bytes) -> Event | None:
    """A message as an Event, or None for a binary kind this client did not ask for."""
    if isinstance(message, str):
        content = json.loads(message)
        return Event(content["type"], content.get("data") or {})
    kind = struct.unpack(">I", message[:4])[0]
    if kind == PREVIEW_IMAGE_WITH_METADATA:
        length = struct.unpack(">I", message[4:8])[0]
        return Event("preview", json.loads(message[8 : 8 + length]), message[8 + length :])
    if kind == PREVIEW_IMAGE:
        return Event("preview", {}, message[8:])
    if kind == PROGRESS_TEXT:
        length = struct.unpack(">I", message[4:8])[0]
        node, text = message[8 : 8 + length], message[8 + length :]
        return Event("progress_text", {"node": node.decode(), "text": text.decode()})
    return None


class EventStream:
    """Connects on construction and collects until `close`.

    Args:
        url: the server's `ws://host:port/ws?clientId=...`.

    Raises:
        ConnectionError: no websocket answered within `timeout` seconds.
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        # Not at module level: run.py imports this package before anything is installed.
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        self.events: list[Event] = []
        self.closed = False
        self._changed = threading.Condition()
        self._connection = contextlib.ExitStack()
        try:
            # No proxy from the environment, which must not be asked for the loopback address; and no limit on the time
            # in which a busy server answers a ping.
            self._socket = self._connection.enter_context(
                connect(url, open_timeout=timeout, max_size=None, compression=None, proxy=None, ping_interval=None)
            )
        except (OSError, WebSocketException) as error:
            raise ConnectionError(f"No websocket answers at {url}.") from error
        # Must be the first message: it selects previews that name their node and prompt.
        self._socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        self._thread = threading.Thread(target=self._read, name="comfyui-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._connection.close()
        self._thread.join(timeout=5)

    def wait(self, seen: int, timeout: float) -> list[Event]:
        """The events after the first `seen`, waiting up to `timeout` seconds for one to arrive."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.events) > seen or self.closed, timeout)
            return self.events[seen:]

    def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            for message in self._socket:
                event = decode(message)
                if event is not None:
                    with self._changed:
                        self.events.append(event)
                        self._changed.notify_all()
        except ConnectionClosed:
            # The server is gone without a word; `closed` tells whoever waits.
            return
        finally:
            with self._changed:
                self.closed = True
                self._changed.notify_all()
