"""Write the pictures of the help pages, web/docs/img/<NodeId>.jpg: each node between what it is connected to.

`python -m tools.help_pictures` opens a few nodes of a template in the frontend that ComfyUI ships and takes a
screenshot. Needs what `export_templates.py` needs.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

from helios_setup.paths import API_WORKFLOWS, ROOT

from .frontend import Frontend, chromium_path, open_frontend
from .serving import PLAIN, template_server

LORA = "watercolour.safetensors"
PICTURES = ROOT / "web" / "docs" / "img"
LARGEST_WIDTH = 1000
JPEG_QUALITY = 82
WINDOW = (1800, 1300)
SETTINGS = {**PLAIN, "Comfy.Canvas.SelectionToolbox": False}

# The template that shows a node; the graphs below show the others.
TEMPLATE_OF = {
    "HeliosLoadModel": "helios_distilled_long_video",
    "HeliosEmptyHistory": "helios_distilled_t2v",
    "HeliosImageHistory": "helios_distilled_i2v",
    "HeliosVideoHistory": "helios_distilled_v2v",
    "HeliosPromptSchedule": "helios_distilled_interactive",
    "HeliosBaseSampler": "helios_base_t2v",
    "HeliosPyramidSampler": "helios_mid_t2v",
    "HeliosDMDSampler": "helios_distilled_t2v",
    "HeliosChunkChain": "helios_distilled_t2v",
    "HeliosDecode": "helios_distilled_t2v",
    "HeliosRenderVideo": "helios_distilled_long_video",
}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


GRAPHS: dict[str, dict[str, dict[str, Any]]] = {
    "HeliosModelLoader": {
        "1": _node("HeliosModelLoader", model="Helios-Distilled"),
        "2": _node("HeliosChunkChain", model=["1", 0]),
    },
    "HeliosTextEncoderLoader": {
        "1": _node("HeliosTextEncoderLoader", text_encoder="Helios-Distilled"),
        "2": _node("CLIPTextEncode", clip=["1", 0], text="A red sailing boat on a quiet lake at sunrise."),
    },
    "HeliosVAELoader": {
        "1": _node("HeliosVAELoader", vae="Helios-Distilled"),
        "2": _node("HeliosDecode", vae=["1", 0]),
    },
    "HeliosLoraLoader": {
        "1": _node("HeliosModelLoader", model="Helios-Distilled"),
        "2": _node("HeliosLoraLoader", model=["1", 0], lora_name=LORA, strength=1.0),
        "3": _node("HeliosChunkChain", model=["2", 0]),
    },
    "HeliosDownloadModel": {"1": _node("HeliosDownloadModel", variant="distilled")},
    "HeliosApplyHistory": {
        "1": _node("CLIPTextEncode", text="A red sailing boat on a quiet lake at sunrise."),
        "2": _node("CLIPTextEncode", text=""),
        "3": _node("HeliosEmptyHistory", width=640, height=384, batch_size=1),
        "4": _node("HeliosApplyHistory", positive=["1", 0], negative=["2", 0], history=["3", 0]),
        "5": _node("CFGGuider", positive=["4", 0], negative=["4", 1], cfg=1.0),
    },
    "HeliosSampleChunk": {
        "1": _node("HeliosModelLoader", model="Helios-Distilled"),
        "2": _node("CLIPTextEncode", text="A red sailing boat on a quiet lake at sunrise."),
        "3": _node("HeliosDMDSampler"),
        "4": _node("HeliosEmptyHistory", width=640, height=384, batch_size=1),
        "5": _node("HeliosSampleChunk", model=["1", 0], positive=["2", 0], sampler=["3", 0], history=["4", 0]),
        "6": _node("HeliosSampleChunk", history=["5", 1]),
        "7": _node("HeliosDecode", latent=["5", 0]),
    },
    "HeliosSaveHistory": {
        "1": _node("HeliosChunkChain", num_chunks=3),
        "2": _node("HeliosSaveHistory", history=["1", 1], filename_prefix="helios_history/take"),
    },
    "HeliosLoadHistory": {
        "1": _node("HeliosLoadHistory", file="helios_history/take_00001_.safetensors [output]"),
        "2": _node("HeliosChunkChain", history=["1", 0], num_chunks=3),
    },
    "HeliosLiveVideo": {
        "1": _node("HeliosLoadModel", model="distilled"),
        "2": _node("HeliosDMDSampler"),
        "3": _node("HeliosEmptyHistory", width=640, height=384, batch_size=1),
        "4": _node(
            "HeliosLiveVideo",
            model=["1", 0],
            clip=["1", 1],
            vae=["1", 2],
            sampler=["2", 0],
            history=["3", 0],
            text="a calm sea at noon, a white boat",
        ),
        "5": _node("PreviewAny", source=["4", 2]),
    },
    "HeliosJoinVideos": {
        "1": _node("HeliosVideoHistory"),
        "2": _node("HeliosDecode"),
        "3": _node("HeliosRenderVideo", num_chunks=44),
        "4": _node(
            "HeliosJoinVideos", **{"parts.part_0": ["1", 1], "parts.part_1": ["2", 0], "parts.part_2": ["3", 0]}
        ),
        "5": _node("SaveVideo", video=["4", 0]),
    },
    "HeliosDriftReport": {
        "1": _node("HeliosRenderVideo", num_chunks=44),
        "2": _node("HeliosDriftReport", video=["1", 0], prompt_changes="7, 14"),
        "3": _node("PreviewImage", images=["2", 0]),
        "4": _node("PreviewAny", source=["2", 2]),
    },
    "HeliosAntiDrift": {
        "1": _node("HeliosEmptyHistory", width=640, height=384, batch_size=1),
        "2": _node("HeliosAntiDrift", history=["1", 0]),
        "3": _node("HeliosRenderVideo", history=["2", 0], num_chunks=44),
    },
    "HeliosAnchorHistory": {
        "1": _node("HeliosSampleChunk"),
        "2": _node("HeliosAnchorHistory", history=["1", 1]),
        "3": _node("HeliosChunkChain", history=["2", 0], num_chunks=6),
    },
    "HeliosEndFrame": {
        "1": _node("HeliosDMDSampler"),
        "2": _node("HeliosVAELoader", vae="Helios-Distilled"),
        "3": _node("HeliosEmptyHistory", width=640, height=384, batch_size=1),
        "4": _node("HeliosEndFrame", sampler=["1", 0], vae=["2", 0], history=["3", 0], num_chunks=1),
        "5": _node("HeliosSampleChunk", sampler=["4", 0]),
    },
    "HeliosLatentColourAnchor": {
        "1": _node("HeliosChunkChain", num_chunks=6),
        "2": _node("HeliosLatentColourAnchor", latent=["1", 0]),
        "3": _node("HeliosDecode", latent=["2", 0]),
    },
    "HeliosColourAnchor": {
        "1": _node("HeliosDecode"),
        "2": _node("HeliosColourAnchor", images=["1", 0]),
        "3": _node("CreateVideo", images=["2", 0], fps=24.0),
    },
    "HeliosChunkFrames": {
        "1": _node("HeliosRenderVideo", num_chunks=44),
        "2": _node("HeliosChunkFrames", film=["1", 0], chunk=7),
        "3": _node("PreviewImage", images=["2", 0]),
    },
    "HeliosSplitVideo": {
        "1": _node("HeliosRenderVideo", num_chunks=21),
        "2": _node("HeliosSplitVideo", video=["1", 0], chunks="7, 14"),
        "3": _node("SaveVideo", video=["2", 0], filename_prefix="video/scene", format="auto", codec="auto"),
    },
    "HeliosProcessVideo": {
        "1": _node("HeliosRenderVideo", num_chunks=44),
        "2": _node("HeliosProcessVideo", video=["1", 0]),
    },
    "HeliosFarmRender": {
        "1": _node(
            "HeliosFarmRender", prompts="a white boat on a calm sea\n---\n0: a calm sea\n7: a storm", num_chunks=14
        ),
        "2": _node("HeliosSplitVideo", video=["1", 0], chunks="7"),
    },
    "HeliosPromptScheduleText": {
        "1": _node("HeliosTextEncoderLoader", text_encoder="Helios-Distilled"),
        "2": _node(
            "HeliosPromptScheduleText",
            clip=["1", 0],
            blend=3,
            text="0: a calm sea at noon, a white boat\n7: dark clouds gather, the wind rises\n14: a storm breaks out",
        ),
        "3": _node("HeliosChunkChain", positive=["2", 0], num_chunks=21),
    },
}

# Three columns: what the node gets, the node (selected), what gets it. Returns the box around all, in the window.
ARRANGE = """async ([type, room]) => {
  app.extensionManager.focusMode = true
  const middle = app.graph.nodes.find(node => node.type === type)
  const feeds = new Set(middle.inputs.map(({ link }) => app.graph.links.get(link)?.origin_id))
  const columns = [[], [middle], []]
  for (const node of app.graph.nodes)
    if (node !== middle) columns[feeds.has(node.id) ? 0 : 2].push(node)
  for (const node of app.graph.nodes) {
    const [width, height] = node.computeSize()
    // What has an editor or a strip of its own knows best how tall it is.
    const own = node.type.startsWith('Helios') && node.widgets?.some(({ element }) => element)
    node.setSize([Math.max(width, 340), own ? Math.max(node.size[1], height) : height])
    if (node.type === 'CLIPTextEncode') node.setSize([340, 110])
    if (node.type === 'LoadImage' || node.type === 'LoadVideo') node.setSize([340, 300])
  }
  const tall = column => column.reduce((sum, node) => sum + node.size[1] + room, -room)
  const tallest = Math.max(...columns.map(tall))
  let left = 0
  for (const column of columns.filter(nodes => nodes.length)) {
    let top = (tallest - tall(column)) / 2
    for (const node of column) {
      node.pos = [left, top]
      top += node.size[1] + room
    }
    left += Math.max(...column.map(node => node.size[0])) + 90
  }
  app.canvas.select(middle)
  const box = [-30, -60, left - 90 + 60, tallest + 90]
  const ds = app.canvas.ds
  await new Promise(done => setTimeout(done, 400))
  ds.scale = Math.min(1, innerWidth / box[2], innerHeight / box[3])
  ds.offset = [-box[0], -box[1]]
  app.canvas.setDirty(true, true)
  await new Promise(done => setTimeout(done, 600))
  const origin = app.canvas.canvas.getBoundingClientRect()
  return [origin.left, origin.top, box[2] * ds.scale, box[3] * ds.scale]
}"""
GAP = 60
# Of core's own: what floats over the graph in a corner.
HIDE = (
    ".graph-canvas-panel > *:not(canvas):not(.dom-widget), .p-buttongroup, .side-tool-bar-container { display: none }"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", metavar="PATH", help="ComfyUI folder instead of the checkout's own")
    parser.add_argument("--only", metavar="NODE", help="take this node's picture instead of all")
    options = parser.parse_args()
    program = chromium_path()
    if program is None:
        parser.error("no Chromium: set HELIOS_CHROMIUM to one")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with (
        template_server(options.comfyui, (f"models/loras/{LORA}",)) as server,
        open_frontend(server.url, program, *WINDOW, **SETTINGS) as frontend,
    ):
        for node in (*TEMPLATE_OF, *GRAPHS):
            if options.only in (None, node):
                picture(frontend, node, PICTURES / f"{node}.jpg")
    return 0


def neighbourhood(node: str) -> dict[str, dict[str, Any]]:
    """The API graph of the first node of that class, what it gets its inputs from and what takes its outputs."""
    if node in GRAPHS:
        return GRAPHS[node]
    graph = json.loads((API_WORKFLOWS / f"{TEMPLATE_OF[node]}.json").read_text(encoding="utf-8"))
    middle = next(key for key in graph if graph[key]["class_type"] == node)
    sources = {key: {v[0] for v in graph[key]["inputs"].values() if isinstance(v, list)} for key in graph}
    kept = {middle, *sources[middle], *(key for key in graph if middle in sources[key])}
    return {key: _without_links(entry, kept) for key, entry in graph.items() if key in kept}


def _without_links(entry: dict[str, Any], kept: set[str]) -> dict[str, Any]:
    """A node without the links that come from nodes other than `kept`."""
    inputs = {name: v for name, v in entry["inputs"].items() if not isinstance(v, list) or v[0] in kept}
    return {**entry, "inputs": inputs}


def picture(frontend: Frontend, node: str, file: Path) -> None:
    """Open the node's neighbourhood and save how it looks."""
    from PIL import Image

    frontend.load_api(neighbourhood(node), node)
    left, top, width, height = frontend.page.evaluate(ARRANGE, [node, GAP])
    clip = {"x": left, "y": top, "width": width, "height": height}
    image = Image.open(io.BytesIO(frontend.page.screenshot(clip=clip, style=HIDE))).convert("RGB")
    if image.width > LARGEST_WIDTH:
        size = (LARGEST_WIDTH, round(image.height * LARGEST_WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    image.save(file, quality=JPEG_QUALITY, optimize=True)
    print(f"{file.relative_to(ROOT)}: {image.width} x {image.height}, {file.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
