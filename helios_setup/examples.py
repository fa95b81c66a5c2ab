"""Input files that the shipped workflows name, made on the spot: moving colours, as an image and as a clip."""

from __future__ import annotations

from pathlib import Path

IMAGE, CLIP = "example.png", "example.mp4"
WIDTH, HEIGHT, FRAMES = 320, 160, 40


def write_examples(folder: Path) -> None:
    """Write the image and the clip to a ComfyUI input folder, keeping files that are there."""
    # Inside the function: run.py imports this package before they are installed.
    import numpy as np
    import torch
    from PIL import Image

    from helios_core.video.segments import VideoSettings, encode_segment

    folder.mkdir(parents=True, exist_ok=True)
    t, y, x = np.meshgrid(np.arange(FRAMES), np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    waves = [np.sin((x * k + y * 2 + t * 8) / 40) for k in (1, 2, 3)]
    frames = (np.stack(waves, -1) * 100 + 128).astype(np.uint8)
    if not (folder / IMAGE).exists():
        Image.fromarray(frames[0]).save(folder / IMAGE)
    if not (folder / CLIP).exists():
        (folder / CLIP).write_bytes(encode_segment(torch.from_numpy(frames), VideoSettings(WIDTH, HEIGHT)))
