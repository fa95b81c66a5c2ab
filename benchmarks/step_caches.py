"""Core's EasyCache and LazyCache on a Helios model: calls saved beside what it costs.

    python -m benchmarks.step_caches MODEL [--chunks 2] [--steps 20 20 20] [--thresholds 0.2]

Renders the same film in a real ComfyUI without a cache and with each at several thresholds. Prints a table, and writes
it as benchmarks/results/step-caches-<folder's name>.json. Needs `python run.py setup`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from helios_core.checkpoint.source import open_transformer
from helios_core.variants import CHUNK_LATENT_FRAMES, VARIANTS
from helios_core.video.drift.report import DriftReport, report_file
from helios_setup.comfyui import existing_tree, link_folder
from helios_setup.paths import PACK_NAME, ROOT
from helios_setup.server import ComfyServer, output_files, stop_on_terminate

RESULTS = Path(__file__).parent / "results"
CACHES = ("EasyCache", "LazyCache")
PROMPT = "a red ball moves right on a plain background"
NAME = "model"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(options: argparse.Namespace, variant: str, cache: str | None, threshold: float) -> dict[str, Any]:
    kind = "HeliosBaseSampler" if variant == "base" else "HeliosPyramidSampler"
    pyramid = {"cfg_zero_star": True, "zero_init": True, "zero_steps": 1, "stage_range": "", "gamma": "1/3"}
    steps = options.steps[0] if variant == "base" else ", ".join(map(str, options.steps))
    cached = {"reuse_threshold": threshold, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    found = {
        "model": node("HeliosModelLoader", model=NAME, weight_dtype="default", attention="auto"),
        "cache": node(cache or "", model=["model", 0], **cached),
        "clip": node("HeliosTextEncoderLoader", text_encoder=NAME),
        "vae": node("HeliosVAELoader", vae=NAME),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text=PROMPT),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "history": node("HeliosEmptyHistory", width=options.width, height=options.height, batch_size=1),
        "sampler": node(kind, steps=steps, solver="unipc", **({} if variant == "base" else pyramid)),
        "chain": node(
            "HeliosChunkChain", model=["cache" if cache else "model", 0], positive=["positive", 0],
            negative=["negative", 0], cfg=5.0, sampler=["sampler", 0], history=["history", 0], seed=options.seed,
            num_chunks=options.chunks,
        ),
        "latents": node("SaveLatent", samples=["chain", 0], filename_prefix="latents"),
        "frames": node("HeliosDecode", latent=["chain", 0], vae=["vae", 0]),
        "video": node("CreateVideo", images=["frames", 0], fps=24.0),
        "film": node("SaveVideo", video=["video", 0], filename_prefix="film", format="mp4", codec="h264"),
    }  # fmt: skip
    if cache is None:
        del found["cache"]
    return found


def film(server: ComfyServer, output: Path, prompt: dict[str, Any]) -> tuple[Tensor, DriftReport, list[str]]:
    """Latents, drift, and the steps that core says it skipped."""
    before = len(server.log())
    files = output_files(server.run(prompt, timeout=3600), output)
    latents = next(load_file(file)["latent_tensor"] for file in files if file.suffix == ".latent")
    report = next(report_file(file, file.name) for file in files if file.suffix == ".mp4")
    return latents, report, re.findall(r"Cache - skipped (\d+)/\d+ steps", server.log()[before:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="released folder of Base or Mid")
    parser.add_argument("--comfyui", metavar="PATH", help="ComfyUI folder instead of the checkout's own")
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--steps", type=int, nargs="+", help="default: the variant's")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    variant = open_transformer(options.model, None).variant
    options.steps = options.steps or list(VARIANTS[variant].steps)
    stop_on_terminate()
    rows: list[dict[str, Any]] = []

    def note(found: dict[str, Any]) -> None:
        """Keeps a line at once: a run takes long."""
        rows.append(found)
        asked = {key: value for key, value in vars(options).items() if key not in ("model", "comfyui")}
        shown = {"model": options.model.resolve().name, **asked, "variant": variant, "rows": rows}
        file = RESULTS / f"step-caches-{options.model.resolve().name}.json"
        file.write_text(json.dumps(shown, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        link_folder(ROOT, base / "custom_nodes" / PACK_NAME)
        link_folder(options.model.resolve(), base / "models" / "diffusers" / NAME)
        arguments = ("--cpu", "--force-fp32", "--base-directory", scratch, "--database-url", "sqlite:///:memory:")
        with ComfyServer(existing_tree(options.comfyui), Path(sys.executable), base / "log", arguments) as server:
            plain, report, _ = film(server, base / "output", graph(options, variant, None, 0))
            note(row("none", 0, [], plain, plain, report))
            for cache in CACHES:
                for threshold in options.thresholds:
                    found = film(server, base / "output", graph(options, variant, cache, threshold))
                    note(row(cache, threshold, found[2], found[0], plain, found[1]))
    return 0


def row(cache: str, threshold: float, skipped: list[str], latents: Tensor, plain: Tensor, report: DriftReport) -> dict:
    """One line of the table, which is printed too."""
    pairs = zip(latents.split(CHUNK_LATENT_FRAMES, 2), plain.split(CHUNK_LATENT_FRAMES, 2), strict=True)
    errors = [round(((a - b).norm() / b.norm()).item(), 4) for a, b in pairs]
    drift = {x.measure.name: x.drift for x in report.drifts}
    print(
        f"{cache:10} {threshold:5} skipped {skipped} latents off {errors} luma {drift['luma']} motion {drift['motion']}"
    )
    return {"cache": cache, "threshold": threshold, "skipped": [*map(int, skipped)], "off": errors, "drift": drift}


if __name__ == "__main__":
    sys.exit(main())
