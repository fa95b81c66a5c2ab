"""ComfyUI's websocket, followed on a thread: every event of one client, in order."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PREVIEW_IMAGE = 1
PREVIEW_IMAGE_WITH_METADATA = 4


@dataclass(frozen=True)
class Event:
    """One websocket message; a binary preview has its metadata in `data` and its file in `image`.

    Attributes:
        type: ComfyUI's event name (`progress_state`, `executed`, `execution_error`, ...) or "preview".
        data: the decoded JSON.
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


def decode_preview(message: bytes) -> Event | None:
    """A binary message as an Event, or None for a kind this client did not ask for."""
    kind = struct.unpack(">I", message[:4])[0]
    if kind == PREVIEW_IMAGE_WITH_METADATA:
        length = struct.unpack(">I", message[4:8])[0]
        return Event("preview", json.loads(message[8 : 8 + length]), message[8 + length :])
    if kind == PREVIEW_IMAGE:
        return Event("preview", {}, message[8:])
    return None


class EventStream:
    """Connects on construction and collects until `close`.

    Args:
        url: the server's `ws://host:port/ws?clientId=...`.

    Raises:
        ConnectionError: no websocket answered within `timeout` seconds.
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        self.events: list[Event] = []
        self.closed = False
        self._url = url
        self._changed = threading.Condition()
        self._connected = threading.Event()
        self._stop: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, name="comfyui-events", daemon=True)
        self._thread.start()
        if not self._connected.wait(timeout) or self.closed:
            self.close()
            raise ConnectionError(f"No websocket answers at {url}.")

    def close(self) -> None:
        self._stop()
        self._thread.join(timeout=5)

    def wait(self, seen: int, timeout: float) -> list[Event]:
        """The events after the first `seen`, waiting up to `timeout` seconds for one to arrive."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.events) > seen or self.closed, timeout)
            return self.events[seen:]

    def _append(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            asyncio.run(self._follow())
        finally:
            with self._changed:
                self.closed = True
                self._changed.notify_all()
            self._connected.set()

    async def _follow(self) -> None:
        # Inside the function: run.py imports this package before aiohttp is installed.
        import aiohttp

        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        self._stop = lambda: loop.is_closed() or loop.call_soon_threadsafe(stopping.set)
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(self._url, max_msg_size=0) as socket,
            ):
                # Must be the first message: it selects previews that name their node and prompt.
                await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
                self._connected.set()
                reading = asyncio.create_task(self._read(socket))
                stopped = asyncio.create_task(stopping.wait())
                await asyncio.wait({reading, stopped}, return_when=asyncio.FIRST_COMPLETED)
                reading.cancel()
                stopped.cancel()
        except (aiohttp.ClientError, OSError):
            # The server is gone; `closed` tells whoever waits.
            return

    async def _read(self, socket: Any) -> None:
        async for message in socket:
            if isinstance(message.data, bytes):
                event = decode_preview(message.data)
                if event is not None:
                    self._append(event)
            else:
                decoded = json.loads(message.data)
                self._append(Event(decoded["type"], decoded.get("data") or {}))
