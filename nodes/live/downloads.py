"""Downloads that a page starts: one at a time for each variant, in a thread, told to pages and kept over a reload.

The websocket event ``helios.download`` carries a ``DownloadState`` whenever one changes.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import asdict, dataclass
from typing import Any

from server import PromptServer

from ...helios_core.commands.download import download
from ...helios_core.errors import HeliosError, reason
from ...helios_core.variants import VARIANTS
from ..adapters.model_files import diffusers_folder, installed_folders

EVENT = "helios.download"
RUNNING, FINISHED, FAILED, STOPPED = "running", "finished", "failed", "stopped"
# More would make telling the slowest part of a fast download.
SMALLEST_STEP = 1 / 500

log = logging.getLogger(__name__)


@dataclass
class DownloadState:
    """How far a download is.

    Attributes:
        variant: base, mid or distilled.
        status: running, finished, failed or stopped.
        done, total: bytes; both 0 until the hub has answered.
        message: why it failed, in one sentence.
    """

    variant: str
    status: str = RUNNING
    done: int = 0
    total: int = 0
    message: str = ""


class _Stopped(BaseException):
    """Not an Exception: the client of the hub would explain it as a fault of the network."""


class Downloads:
    """All downloads of this process, the last one of each variant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, DownloadState] = {}
        self._stops: dict[str, threading.Event] = {}

    def states(self) -> dict[str, dict[str, Any]]:
        """By variant."""
        with self._lock:
            return {variant: asdict(state) for variant, state in self._states.items()}

    def start(self, variant: str) -> dict[str, Any]:
        """Starts a download, unless it runs already."""
        with self._lock:
            state = self._states.get(variant)
            if state is None or state.status != RUNNING:
                state = self._states[variant] = DownloadState(variant)
                self._stops[variant] = threading.Event()
                worker = threading.Thread(
                    target=self._run, args=(state, self._stops[variant]), name=f"helios-download-{variant}", daemon=True
                )
                worker.start()
            return asdict(state)

    def stop(self, variant: str) -> None:
        """Ends a running download at its next bytes; what has arrived is kept."""
        with self._lock:
            if variant in self._stops:
                self._stops[variant].set()

    def _run(self, state: DownloadState, stop: threading.Event) -> None:
        told = -math.inf

        def report(done: int, total: int) -> None:
            nonlocal told
            if stop.is_set():
                raise _Stopped
            state.done, state.total = done, total
            if done == total or done - told >= total * SMALLEST_STEP:
                told = done
                self._tell(state)

        self._tell(state)
        try:
            download(state.variant, target(state.variant), report)
            state.status = FINISHED
        except _Stopped:
            state.status = STOPPED
        except HeliosError as error:
            state.status, state.message = FAILED, str(error)
        except Exception as error:  # the page must hear of it, whatever it is
            log.exception("Helios %s could not be downloaded", state.variant)
            state.status, state.message = FAILED, f"the download failed ({reason(error)}); see ComfyUI's log."
        self._tell(state)

    def _tell(self, state: DownloadState) -> None:
        PromptServer.instance.send_sync(EVENT, asdict(state))


def target(variant: str) -> Any:
    """The folder that a variant is downloaded into: where it lies already, else under models/diffusers."""
    name = VARIANTS[variant].folder
    return installed_folders().get(name, diffusers_folder() / name)
