"""The guider beside what a user's other nodes put on a MODEL."""

import pytest
import torch
from helios_comfy_graphs import SIZE, node
from safetensors.torch import load_file

from helios_setup.errors import ExecutionFailedError
from helios_setup.server import output_files

MID = "helios-tiny-mid"


def chain(rescaled: bool, **changes) -> dict:
    """One guided chunk of Mid, its model through core's RescaleCFG or not; ``changes`` are the sampler's."""
    settings = {"steps": "3, 1, 1", "solver": "unipc", "cfg_zero_star": True, "zero_init": True, "zero_steps": 1}
    model = ["rescaled" if rescaled else "model", 0]
    return {
        "model": node("HeliosModelLoader", model=MID, weight_dtype="default", attention="auto"),
        "rescaled": node("RescaleCFG", model=["model", 0], multiplier=0.7),
        "clip": node("HeliosTextEncoderLoader", text_encoder=MID),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text="a boat"),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text="blurry"),
        "history": node("HeliosEmptyHistory", width=SIZE, height=SIZE, batch_size=1),
        "sampler": node("HeliosPyramidSampler", **settings | {"stage_range": "", "gamma": "1/3"} | changes),
        "chain": node(
            "HeliosChunkChain", model=model, positive=["positive", 0], negative=["negative", 0], cfg=5.0,
            sampler=["sampler", 0], history=["history", 0], seed=3, num_chunks=1,
        ),
        "saved": node("SaveLatent", samples=["chain", 0], filename_prefix="guider"),
    }  # fmt: skip


def latents(comfy, graph) -> torch.Tensor:
    (file,) = output_files(comfy.run(graph, timeout=120), comfy.log_file.parent / "output")
    return load_file(file)["latent_tensor"]


def test_another_nodes_guidance_is_refused_by_name_beside_zero_star(comfy):
    with pytest.raises(ExecutionFailedError, match=r"guidance replaced by another node \(.*rescale_cfg") as caught:
        comfy.run(chain(rescaled=True), timeout=120)
    assert "turn cfg_zero_star off" in str(caught.value)


def test_another_nodes_guidance_works_without_zero_star(comfy):
    plain = latents(comfy, chain(rescaled=False, cfg_zero_star=False))
    changed = latents(comfy, chain(rescaled=True, cfg_zero_star=False))
    assert not torch.allclose(plain, changed, atol=1e-3)
