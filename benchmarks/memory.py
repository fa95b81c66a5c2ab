"""Peak memory of a short and a long film, in a real ComfyUI and on the command line: it must not grow with length.

    python benchmarks/memory.py --comfyui PATH [--width 640 --height 384] [--chunks 8 44] [--only "Process Video"]

Renders with helios-tiny (random weights), one step per stage, every film in a process of its own, and prints the
peak resident memory (VmHWM of /proc, so Linux only). Process Video doubles the size of a film that lies on disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helios_core.video.growing import GrowingVideo  # noqa: E402
from helios_core.video.segments import VideoSettings, encode_segment  # noqa: E402
from helios_setup.comfyui import existing_tree, link_folder  # noqa: E402
from helios_setup.paths import PACK_NAME  # noqa: E402
from helios_setup.server import ComfyServer  # noqa: E402

TINY = "helios-tiny-distilled"
CHUNK_SECONDS = 33 / 24
ALLOWED_MIB = 60


def peak_mib(pid: int) -> float | None:
    """Highest resident memory of a process so far; None once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return values[0] / 1024 if values else None


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(width: int, height: int, chunks: int) -> dict:
    """Text to a film, in API format."""
    steps = {"steps": "1, 1, 1", "amplify_first_chunk": False, "stage_range": "", "gamma": "1/3"}
    render = {
        "model": ["model", 0], "positive": ["text", 0], "negative": ["text", 0], "cfg": 1.0, "sampler": ["sampler", 0],
        "history": ["history", 0], "seed": 0, "num_chunks": chunks, "vae": ["vae", 0], "fps": 24.0, "codec": "h264",
        "quality": 18, "filename_prefix": f"film{chunks}", "resume": False,
    }  # fmt: skip
    return {
        "model": node("HeliosModelLoader", model=TINY, weight_dtype="default", attention="auto"),
        "clip": node("HeliosTextEncoderLoader", text_encoder=TINY),
        "vae": node("HeliosVAELoader", vae=TINY),
        "text": node("CLIPTextEncode", clip=["clip", 0], text="a boat"),
        "history": node("HeliosEmptyHistory", width=width, height=height, batch_size=1),
        "sampler": node("HeliosDMDSampler", **steps),
        "render": node("HeliosRenderVideo", **render),
    }


def comfyui(tree: Path, base: Path, width: int, height: int, chunks: int) -> tuple[float, float]:
    """Peak MiB of a fresh ComfyUI rendering one film, and the seconds it took."""
    return in_comfyui(tree, base, graph(width, height, 1), graph(width, height, chunks))


def processed(tree: Path, base: Path, width: int, height: int, chunks: int) -> tuple[float, float]:
    """The same of one that doubles a film's size."""
    (base / "input").mkdir(parents=True, exist_ok=True)
    for count in (1, chunks):
        write_film(base / "input" / f"{count}.mp4", width, height, count)
    begin, film = (
        {
            "load": node("LoadVideo", file=f"{count}.mp4"),
            "process": node("HeliosProcessVideo", video=["load", 0], multiplier=2, frames_at_once=8, scale=2.0),
        }
        for count in (1, chunks)
    )
    return in_comfyui(tree, base, begin, film)


def write_film(path: Path, width: int, height: int, chunks: int) -> None:
    """A texture that moves."""
    still = np.random.default_rng(1).integers(60, 200, (height // 8, width // 8, 3), dtype=np.uint8)
    still = still.repeat(8, 0).repeat(8, 1)
    frames = torch.from_numpy(np.stack([np.roll(still, i, axis=1) for i in range(33)]))
    film = GrowingVideo(path)
    for _ in range(chunks):
        film.append(encode_segment(frames, VideoSettings(width, height)))
    film.cut()
    film.close()


def in_comfyui(tree: Path, base: Path, begin: dict, film: dict) -> tuple[float, float]:
    """Peak MiB of a fresh ComfyUI that runs one graph after another, and the seconds of the second."""
    for name in ("custom_nodes", "input", "output", "user", "models/diffusers"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(ROOT, base / "custom_nodes" / PACK_NAME)
    own = ["--base-directory", str(base), "--temp-directory", str(base), "--database-url", "sqlite:///:memory:"]
    with ComfyServer(
        tree, Path(sys.executable), base / "comfyui.log", [*own, "--cpu", "--use-pytorch-cross-attention"]
    ) as server:
        # Loading is the same for every length; a short film first makes the measurement that of rendering.
        server.run(begin, timeout=3600)
        started = time.monotonic()
        server.run(film, timeout=3600)
        seconds, peak = time.monotonic() - started, peak_mib(server.pid)
    assert peak is not None
    return peak, seconds


def command_line(model: Path, folder: Path, width: int, height: int, chunks: int) -> tuple[float, float]:
    """Peak MiB of ``python -m helios_core generate``, and the seconds it took."""
    command = [sys.executable, "-m", "helios_core", "generate", "--prompt", "a boat", "--model", str(model)]
    command += ["--width", str(width), "--height", str(height), "--seconds", str(chunks * CHUNK_SECONDS)]
    command += ["--steps", "1", "1", "1", "--output", str(folder / f"cli{chunks}.mp4")]
    command += ["--store", str(folder / f"store{chunks}")]
    started, peak = time.monotonic(), 0.0
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, peak_mib(process.pid) or 0.0)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"The command line failed with exit code {process.returncode}.")
    return peak, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI folder (default: what run.py setup unpacked)")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--chunks", type=int, nargs=2, default=(8, 44))
    parser.add_argument("--only", help="one line of the table")
    options = parser.parse_args()
    tree = options.comfyui.resolve() if options.comfyui else existing_tree()
    if tree is None:
        parser.error("no ComfyUI: run `python run.py setup`, or give --comfyui")
    size, grows = (options.width, options.height), False
    print(f"{size[0]}x{size[1]}, peak resident memory")
    print("| | " + " | ".join(f"{chunks} chunks" for chunks in options.chunks) + " | difference |")
    print("|---|" + "---|" * 3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "comfy" / "models" / "diffusers" / TINY
        command = [sys.executable, "-m", "helios_core", "tiny", "--output", str(model)]
        subprocess.run(command, check=True, capture_output=True)
        for name, measure in (
            ("ComfyUI", lambda chunks: comfyui(tree, folder / "comfy", *size, chunks)),
            ("command line", lambda chunks: command_line(model, folder, *size, chunks)),
            ("Process Video", lambda chunks: processed(tree, folder / "comfy", *size, chunks)),
        ):
            if options.only not in (None, name):
                continue
            measured = [measure(chunks) for chunks in options.chunks]
            difference = measured[1][0] - measured[0][0]
            grows |= difference > ALLOWED_MIB
            cells = [f"{peak:.0f} MiB, {seconds:.0f} s" for peak, seconds in measured]
            print(f"| {name} | " + " | ".join(cells) + f" | {difference:+.0f} MiB |", flush=True)
    return int(grows)


if __name__ == "__main__":
    sys.exit(main())
