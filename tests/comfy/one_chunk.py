"""One chunk in a real ComfyUI: the graph that tests of weights queue, and what becomes of it.

It uses core's KSampler: what is under test is the model, not the Helios samplers.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

from helios_setup.errors import PromptRejectedError
from helios_setup.server import failure

TINY = "helios-tiny-distilled"
MODEL, SAMPLE, SAVE = "model", "sample", "save"


def base(comfy) -> Path:
    return comfy.log_file.parent


def models(comfy, kind) -> Path:
    folder = base(comfy) / "models" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def graph(model=TINY, **loader):
    """One chunk with core's own sampler, cut after the latent."""
    text = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a red boat"}}
    return {
        MODEL: {
            "class_type": "HeliosModelLoader",
            "inputs": {"model": model, "weight_dtype": "default", "attention": "auto"} | loader,
        },
        "clip": {"class_type": "HeliosTextEncoderLoader", "inputs": {"text_encoder": TINY}},
        "text": text,
        "empty": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 64, "height": 64, "length": 33, "batch_size": 1},
        },
        SAMPLE: {
            "class_type": "KSampler",
            "inputs": {
                "model": [MODEL, 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0],
                "seed": 3, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            },
        },
        SAVE: {"class_type": "SaveLatent", "inputs": {"samples": [SAMPLE, 0], "filename_prefix": "test/weights"}},
    }  # fmt: skip


def latents(comfy, prompt) -> torch.Tensor:
    item = next(iter(comfy.run(prompt)["outputs"][SAVE].values()))[0]
    return load_file(base(comfy) / "output" / item["subfolder"] / item["filename"])["latent_tensor"]


def refused(comfy, prompt) -> str:
    """The message of a graph that must fail; afterwards the server must still serve."""
    try:
        message = failure(comfy.wait(comfy.queue(prompt)))
    except PromptRejectedError as error:
        message = str(error)
    assert comfy.get("/queue")["queue_running"] == []
    return message
