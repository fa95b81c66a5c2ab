"""A user's own clips: captions beside them, cut into chunks at 24 fps, encoded once and kept in a cache."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from helios_core.checkpoint.text import load_text_encoder
from helios_core.checkpoint.vae import load_vae
from helios_core.errors import HeliosError
from helios_core.networks.parallel.team import Team
from helios_core.networks.text import MAX_LENGTH
from helios_core.take.fingerprint import file_fingerprint, fingerprint, folder_fingerprint
from helios_core.take.reference import fitted
from helios_core.variants import CHUNK_FRAMES, FPS
from helios_core.video.reader import VideoReader

from .data import Clips, encode_chunks, encode_still

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
COLUMNS = ("file", "caption")
REMEDY = "write a text file with a clip's name beside it, or a CSV with the columns file and caption"


@dataclass(frozen=True)
class Footage:
    """A video file and what is to be seen in it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Encoder:
    """How clips and captions are encoded: by the VAE and the text encoder of a released folder, at one size."""

    release: Path
    width: int
    height: int
    device: torch.device
    dtype: torch.dtype
    streamed: bool = False


def find_footage(source: Path) -> list[Footage]:
    """The captioned clips of a folder or of a CSV file; a clip without a caption is named and left out.

    A folder's CSV, where it holds just one, is read in place of text files.

    Raises:
        HeliosError: absent, or nothing in it has a caption.
    """
    if not source.exists():
        raise HeliosError(f"clips {source} does not exist; give a folder of clips with captions, or a CSV file.")
    tables = [source] if source.is_file() else sorted(source.glob("*.csv"))
    if len(tables) > 1:
        raise HeliosError(f"{source} holds {len(tables)} CSV files; give the one that is meant.")
    found = list(_from_table(tables[0]) if tables else _from_texts(source))
    if not found:
        raise HeliosError(f"{source} holds no clip with a caption; {REMEDY}.")
    return found


def _from_table(table: Path) -> Iterator[Footage]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HeliosError(f"{table} cannot be read as a CSV in UTF-8 ({error}); save it again.") from None
    if rows and not set(COLUMNS) <= rows[0].keys():
        raise HeliosError(f"{table} has no columns {' and '.join(COLUMNS)}; name them in its first line.")
    for row in rows:
        name, caption = ((row[column] or "").strip() for column in COLUMNS)
        if name and caption:
            yield Footage(table.parent / name, caption)
        else:
            _skip(table.parent / name if name else table, "a row has no file or no caption")


def _from_texts(folder: Path) -> Iterator[Footage]:
    for path in sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES):
        text = path.with_suffix(".txt")
        try:
            caption = text.read_text(encoding="utf-8-sig").strip() if text.is_file() else ""
        except UnicodeDecodeError:
            _skip(path, f"{text.name} is not UTF-8")
            continue
        if caption:
            yield Footage(path, caption)
        else:
            _skip(path, f"it has no caption in {text.name}")


def _skip(path: Path, why: str) -> None:
    print(f"skipped {path}: {why}", file=sys.stderr, flush=True)


def frames_at(frames: Iterable[tuple[float, np.ndarray]], fps: float = FPS) -> Iterator[np.ndarray]:
    """Frames with their times in seconds -> frames at ``fps``, each the one that is nearest in time."""
    before: tuple[float, np.ndarray] | None = None
    first, made, half = 0.0, 0, 0.5 / fps
    for time, frame in frames:
        if before is None:
            first = time
        else:
            half = (time - before[0]) / 2
            while first + made / fps < before[0] + half:
                yield before[1]
                made += 1
        before = time, frame
    # The last frame is shown as long as the one before it.
    while before is not None and first + made / fps < before[0] + half:
        yield before[1]
        made += 1


def read_chunks(path: Path, width: int, height: int) -> Iterator[Tensor]:
    """A file's whole chunks [33,3,H,W] in 0..1 at 24 fps, covering the size and cropped at the centre.

    Raises:
        HeliosError: unreadable, or in high dynamic range.
    """
    with VideoReader(path) as reader:
        if reader.hdr:
            raise HeliosError(f"The video {path} is in high dynamic range ({reader.hdr}): convert it first.")
        rate = reader.fps or FPS
        timed = ((number / rate if reader.time is None else reader.time, f) for number, f in enumerate(reader))
        pictures = (fitted("video", Image.fromarray(frame), width, height) for frame in frames_at(timed))
        while len(chunk := list(islice(pictures, CHUNK_FRAMES))) == CHUNK_FRAMES:
            yield torch.stack(chunk)


class Cache:
    """Latents and embeddings in ``folder``, keyed by what they are made from and by what makes them."""

    def __init__(self, folder: Path, encoder: Encoder):
        self.folder, self.encoder = folder, encoder
        parts = encoder.release
        self._vae = folder_fingerprint(parts / "vae")
        tokenizer = folder_fingerprint(parts / "tokenizer", ("*.json", "*.model"))
        self._text = fingerprint(folder_fingerprint(parts / "text_encoder"), tokenizer, encoder.dtype)
        folder.mkdir(parents=True, exist_ok=True)

    def clips(self, footage: list[Footage], team: Team | None = None) -> Clips:
        """Encodes what is not there yet, every process of ``team`` its share, and reads all.

        Files that cannot be used are named and left out.

        Raises:
            HeliosError: no file can be used.
        """
        team = team or Team()
        texts = ["", *dict.fromkeys(clip.caption for clip in footage)]
        rows_of = {text: row for row, text in enumerate(texts)}
        self._encode_clips(footage[team.rank :: team.size])
        self._encode_texts(texts[team.rank :: team.size])
        team.wait()
        usable = [clip for clip in footage if clip.path.is_file() and self._latents(clip.path).is_file()]
        if not usable:
            raise HeliosError(
                f"none of the {len(footage)} clips can be used; give whole videos of at least {CHUNK_FRAMES} frames "
                f"at {FPS:g} fps."
            )
        read = [load_file(self._latents(clip.path)) for clip in usable]
        latents, stills = ([clip[part] for clip in read] for part in ("latents", "still"))
        captions = [[rows_of[clip.caption]] * len(x) for clip, x in zip(usable, latents, strict=True)]
        rows = [load_file(self._embedding(text))["rows"] for text in texts]
        # One row past the longest: the padding that all share.
        length = min(MAX_LENGTH, 1 + max(map(len, rows)))
        return Clips(latents, stills, captions, torch.stack([F.pad(x, (0, 0, 0, length - len(x))) for x in rows]))

    def _latents(self, path: Path) -> Path:
        size = self.encoder.width, self.encoder.height
        return self.folder / f"clip-{fingerprint(file_fingerprint(path), size, self._vae)}.safetensors"

    def _embedding(self, text: str) -> Path:
        return self.folder / f"text-{fingerprint(text, self._text)}.safetensors"

    @torch.no_grad()
    def _encode_clips(self, footage: list[Footage]) -> None:
        waiting = [clip for clip in footage if not (clip.path.is_file() and self._latents(clip.path).is_file())]
        if not waiting:
            return
        here = self.encoder
        vae = load_vae(here.release, device=here.device)
        for clip in waiting:
            try:
                if not clip.path.is_file():
                    raise HeliosError("there is no such file")
                made: dict[str, list[Tensor]] = {"latents": [], "still": []}
                for chunk in read_chunks(clip.path, here.width, here.height):
                    if not made["still"]:
                        still = encode_still(vae, chunk[0].to(here.device), lean=False, frames=CHUNK_FRAMES)
                        made["still"].append(still.half().cpu())
                    made["latents"].append(encode_chunks(vae, chunk.to(here.device), lean=False).half().cpu())
                if not made["latents"]:
                    raise HeliosError(f"it is shorter than a chunk, {CHUNK_FRAMES} frames at {FPS:g} fps")
                _write(self._latents(clip.path), {name: torch.cat(parts) for name, parts in made.items()})
                print(f"encoded {clip.path}: {len(made['latents'])} chunks", flush=True)
            except (HeliosError, OSError) as error:
                _skip(clip.path, str(error))

    def _encode_texts(self, texts: list[str]) -> None:
        missing = [text for text in texts if not self._embedding(text).is_file()]
        if not missing:
            return
        here = self.encoder
        encoder = load_text_encoder(here.release, here.dtype, here.device, here.streamed)
        for text in missing:
            (rows,) = encoder.encode([text])
            used = int((rows != 0).any(-1).sum())
            _write(self._embedding(text), {"rows": rows[:used].cpu().contiguous()})


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_suffix(".part")
    save_file(tensors, partial)
    partial.replace(path)
