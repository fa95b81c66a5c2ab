"""An AAC track for a film."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from ..errors import HeliosError

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
AAC_FRAME = 1024
# Codecs of sound that an MP4 takes as they are.
COPIED = ("aac", "ac3", "alac", "eac3", "flac", "mp3", "mp3float", "opus", "libopus")


class SoundTrack:
    """Encodes ComfyUI's AUDIO as far as the picture has come, so that neither waits for the other in memory."""

    def __init__(self, container: Any, audio: Mapping[str, Any]):
        self._waveform, self._rate = check_audio(audio), int(audio["sample_rate"])
        self._container = container
        self._layout = LAYOUTS[self._waveform.shape[0]]
        self._stream = container.add_stream("aac", rate=self._rate, layout=self._layout)
        self._done = 0

    def write_until(self, seconds: Fraction) -> None:
        end = min(round(seconds * self._rate), self._waveform.shape[1])
        while self._done < end:
            stop = min(self._done + AAC_FRAME, end)
            samples = np.ascontiguousarray(self._waveform[:, self._done : stop].float().cpu().numpy())
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._done, Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
            self._done = stop

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))


class CopiedSound:
    """A file's sound, packet by packet as far as the picture has come; nothing is encoded again.

    Args:
        source: the file; ``start`` and ``duration`` (0: to the end) are the part of it in seconds.
    """

    def __init__(self, container: Any, source: Any, start: float = 0.0, duration: float = 0.0):
        self._file, self._container = av.open(source), container
        stream = self._file.streams.audio[0]
        self._copy = container.add_stream_from_template(stream)
        self._start, self._end = start, start + duration if duration else float("inf")
        self._packets = self._file.demux(stream)
        self._waiting: Any = None

    def write_until(self, seconds: Fraction) -> None:
        while (packet := self._waiting or next(self._packets, None)) is not None:
            self._waiting = None
            time = None if packet.pts is None else float(packet.pts * packet.time_base)
            if time is None or not self._start <= time < self._end:
                continue
            if time - self._start >= seconds:
                self._waiting = packet
                return
            shift = int(self._start / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = self._copy
            self._container.mux(packet)

    def finish(self) -> None:
        self._file.close()


def sound_of(source: Any) -> str | None:
    """The codec of a file's first sound track; None where there is none.

    Raises:
        HeliosError: one that an MP4 does not take.
    """
    with av.open(source) as file:
        stream = file.streams.audio[0] if file.streams.audio else None
        codec = None if stream is None or stream.codec_context is None else stream.codec_context.name
    if codec is not None and codec not in COPIED:
        raise HeliosError(f"video has sound as {codec}, which an MP4 does not take; encode it as AAC, or remove it.")
    return codec


def check_audio(audio: Mapping[str, Any]) -> Tensor:
    """The samples [C,S] of an AUDIO's first clip.

    Raises:
        HeliosError: a channel count or a sample rate that AAC does not have.
    """
    waveform, rate = audio["waveform"], int(audio["sample_rate"])
    channels = waveform.shape[1] if waveform.ndim == 3 else 0
    if channels not in LAYOUTS or not waveform.shape[0]:
        raise HeliosError(
            f"audio has shape {list(waveform.shape)}; give [1, channels, samples] with 1, 2 or 6 channels."
        )
    rates = sorted(av.codec.Codec("aac", "w").audio_rates or ())
    if rates and rate not in rates:
        nearest = min(rates, key=lambda known: abs(known - rate))
        raise HeliosError(f"audio has sample_rate={rate}, which AAC does not support; resample it to {nearest}.")
    return waveform[0]


def shifted(audio: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """An AUDIO that begins ``seconds`` later, after silence; where that is negative, without its first seconds.

    Raises:
        HeliosError: as for :func:`check_audio`; or nothing is left of it.
    """
    rate = int(audio["sample_rate"])
    check_audio(audio)
    samples = round(seconds * rate)
    waveform = audio["waveform"][..., max(0, -samples) :]
    if not waveform.shape[-1]:
        raise HeliosError(f"audio_offset={seconds:g} cuts the whole sound off; give one above minus its length.")
    return {**audio, "waveform": torch.nn.functional.pad(waveform, (max(0, samples), 0))}
