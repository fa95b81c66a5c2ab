"""Write the subgraph blueprint, subgraphs/Helios text to video.json, from the text-to-video template.

`python -m tools.export_blueprint` opens the template in the frontend that ComfyUI ships, turns all of it but Save
Video into one node, publishes that as a user would, and keeps what the frontend stored. Needs what
`export_templates.py` needs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.parse
import uuid
from typing import Any

from helios_setup.paths import ROOT

from .export_templates import ID_SPACE, WORKFLOWS
from .frontend import chromium_path, open_frontend
from .serving import PLAIN, template_server

NAME = "Helios text to video"
FILE = ROOT / "subgraphs" / f"{NAME}.json"
TEMPLATE = "Helios Distilled - Text to Video"
CATEGORY = "Helios"
DESCRIPTION = (
    "Text to video with Helios Distilled: chunks of 33 frames, 1.4 seconds each, one after the other. Takes "
    "models/diffusers/Helios-Distilled, or a small model of the nodes where that is not installed."
)
SEARCH_ALIASES = ["helios", "helios t2v", "helios text to video", "long video"]
SIZE = (400, 620)
# (class type, which of them, widget, name on the node), in the order in which they stand there.
WIDGETS = (
    ("CLIPTextEncode", 0, "text", "prompt"),
    ("CLIPTextEncode", 1, "text", "negative_prompt"),
    ("HeliosLoadModel", 0, "model", "model"),
    ("HeliosEmptyHistory", 0, "width", "width"),
    ("HeliosEmptyHistory", 0, "height", "height"),
    ("HeliosChunkChain", 0, "num_chunks", "num_chunks"),
    ("HeliosChunkChain", 0, "seed", "seed"),
    ("HeliosDMDSampler", 0, "steps", "steps"),
    ("HeliosChunkChain", 0, "cfg", "cfg"),
)
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

CONVERT = """([name, widgets, size]) => {
  const outside = ['MarkdownNote', 'SaveVideo']
  const inside = app.graph.nodes.filter(node => !outside.includes(node.type))
  const { subgraph, node } = app.graph.convertToSubgraph(new Set([...inside, ...app.graph.groups]))
  // The frontend chose some inputs by itself.
  for (const input of [...subgraph.inputs]) subgraph.removeInput(input)
  const byId = [...subgraph.nodes].sort((a, b) => a.id - b.id)
  for (const [type, index, widget, label] of widgets) {
    const inner = byId.filter(other => other.type === type)[index]
    const slot = inner.inputs.find(input => input.widget?.name === widget)
    subgraph.addInput(label, String(slot.type)).connect(slot, inner)
  }
  subgraph.renameOutput(subgraph.outputs[0], 'video')
  subgraph.name = node.title = name
  for (const other of app.graph.nodes.filter(other => other !== node)) app.graph.remove(other)
  node.setSize(size)
  app.canvas.select(node)
  app.canvas.updateSelectedItems?.()
}"""
PUBLISH = "name => app.extensionManager.command.execute('Comfy.PublishSubgraph', { metadata: { name } })"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", metavar="PATH", help="ComfyUI folder instead of the checkout's own")
    options = parser.parse_args()
    program = chromium_path()
    if program is None:
        parser.error("no Chromium: set HELIOS_CHROMIUM to one")
    # While it lies there its name is taken.
    FILE.unlink(missing_ok=True)
    with template_server(options.comfyui) as server, open_frontend(server.url, program, **PLAIN) as frontend:
        frontend.load_template(json.loads((WORKFLOWS / f"{TEMPLATE}.json").read_text(encoding="utf-8")), TEMPLATE)
        frontend.page.evaluate(CONVERT, [NAME, WIDGETS, SIZE])
        with frontend.page.expect_response(lambda response: "/userdata/" in response.url and response.ok):
            frontend.page.evaluate(PUBLISH, NAME)
        stored = server.get("/userdata/" + urllib.parse.quote(f"subgraphs/{NAME}.json", safe=""))
        if frontend.errors:
            raise RuntimeError("; ".join(frontend.errors))
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(tidy(stored), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)}: {len(stored['definitions']['subgraphs'][0]['nodes'])} nodes")
    return 0


def tidy(stored: dict[str, Any]) -> dict[str, Any]:
    """The stored blueprint with what describes it, and with ids that stay however often it is written."""
    (subgraph,) = stored["definitions"]["subgraphs"]
    subgraph.update(name=NAME, category=CATEGORY, description=DESCRIPTION)
    (node,) = stored["nodes"]
    node.update(pos=[0, 0], order=0)
    stored["last_node_id"] = int(stored["last_node_id"])
    stored["extra"] = {"BlueprintDescription": DESCRIPTION, "BlueprintSearchAliases": SEARCH_ALIASES}
    text = json.dumps(stored, ensure_ascii=False)
    for i, old in enumerate(dict.fromkeys(UUID.findall(text))):
        text = text.replace(old, str(uuid.uuid5(ID_SPACE, f"{NAME} {i}")))
    return json.loads(text)


if __name__ == "__main__":
    sys.exit(main())
