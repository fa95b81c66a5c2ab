"""Memory of one distillation step with the heads' gradient cached (the paper's stage 3) and without.

    python -m benchmarks.cached_gradients [--folder training-runs] [--batch 12]

Each step runs in a process of its own, on the CPU, at the largest stage; prints the peak resident memory and what the
step adds to what was there before it. Needs `python -m training parts` and `data`.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from training.data import WorldClips
from training.model import new_transformer
from training.stage3 import DistillTask
from training.trainer import StepRandom

SIZE = (128, 64)
SHARDS = 2  # all of them would be most of the memory


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step(folder: Path, batch: int, cached: bool) -> None:
    """One step of the student's; prints its figures."""
    with tempfile.TemporaryDirectory() as few:
        for shard in sorted((folder / "clips").glob(f"{SIZE[0]}x{SIZE[1]}-*.safetensors"))[:SHARDS]:
            (Path(few) / shard.name).symlink_to(shard.resolve())
        clips = WorldClips(folder / "parts", Path(few), *SIZE)
    task = DistillTask(new_transformer(1), new_transformer(2), clips, batch, cached=cached)
    before = peak_mib()
    task.loss(0, StepRandom(0, 0))[0].backward()
    print(f"| {'yes' if cached else 'no'} | {peak_mib():.0f} MiB | {peak_mib() - before:.0f} MiB |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("training-runs"))
    parser.add_argument("--batch", type=int, default=12, help="chunks of a step")
    parser.add_argument("--cached", choices=("yes", "no"), help="one of the two, in this process")
    options = parser.parse_args()
    if options.cached:
        step(options.folder, options.batch, options.cached == "yes")
        return 0
    print("| cached | peak | of the step |\n|---|---|---|", flush=True)
    again = [sys.executable, "-m", "benchmarks.cached_gradients", "--folder", str(options.folder)]
    for cached in ("no", "yes"):
        subprocess.run([*again, "--batch", str(options.batch), "--cached", cached], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
