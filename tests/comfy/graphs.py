"""Graphs in API format that several test files queue."""

from typing import Any

TINY = "helios-tiny-distilled"
SIZE = 64


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def film(prefix: str = "film", chunks: int = 4, **changes: Any) -> dict[str, dict[str, Any]]:
    """A small render: one step a stage, 64x64; ``changes`` replace inputs of its last node, ``render``."""
    inputs = {
        "model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0], "cfg": 1.0,
        "sampler": ["sampler", 0], "history": ["history", 0], "seed": 3, "num_chunks": chunks, "vae": ["vae", 0],
        "fps": 24.0, "codec": "h264", "quality": 18, "filename_prefix": prefix, "resume": True,
    }  # fmt: skip
    steps = {"steps": "1, 1, 1", "stage_range": "", "gamma": "1/3", "amplify_first_chunk": False}
    return {
        "model": node("HeliosModelLoader", model=TINY, weight_dtype="default", attention="auto"),
        "clip": node("HeliosTextEncoderLoader", text_encoder=TINY),
        "vae": node("HeliosVAELoader", vae=TINY),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text="a boat"),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "history": node("HeliosEmptyHistory", width=SIZE, height=SIZE, batch_size=1),
        "sampler": node("HeliosDMDSampler", **steps),
        "render": node("HeliosRenderVideo", **inputs | changes),
    }


def live(prefix: str, text: str = "a boat", **changes: Any) -> dict[str, dict[str, Any]]:
    """A live film of one step a stage, 64x64."""
    graph = film(prefix)
    inputs = graph.pop("render")["inputs"]
    del inputs["positive"], inputs["num_chunks"], graph["positive"]
    own = {"clip": ["clip", 0], "text": text, "max_chunks": 0}
    graph["live"] = node("HeliosLiveVideo", **inputs | own | changes)
    graph["show"] = node("PreviewAny", source=["live", 2])
    graph["seeds"] = node("PreviewAny", source=["live", 3])
    return graph
