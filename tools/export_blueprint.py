"""Write the subgraph blueprints, subgraphs/*.json, each from a template.

`python -m tools.export_blueprint [NAME ...]` opens a blueprint's template in the frontend that ComfyUI ships, turns all
of it but Save Video into one node, publishes that as a user would, and keeps what the frontend stored. Needs what
`export_templates.py` needs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.parse
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helios_setup.paths import ROOT
from helios_setup.server import ComfyServer

from .export_templates import ID_SPACE, WORKFLOWS
from .frontend import Frontend, chromium_path, open_frontend
from .serving import PLAIN, template_server

FOLDER = ROOT / "subgraphs"
CATEGORY = "Helios"
MODELS = "Takes models/diffusers/Helios-Distilled, or a small model of the nodes where that is not installed."


@dataclass(frozen=True)
class Blueprint:
    """A template as one node.

    Attributes:
        size: (width, height) of the node.
        widgets: (class type, which of them, widget, name on the node), in the order in which they stand there.
    """

    name: str
    template: str
    description: str
    search_aliases: tuple[str, ...]
    size: tuple[int, int]
    widgets: tuple[tuple[str, int, str, str], ...]

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.name}.json"


TEXT_TO_VIDEO = Blueprint(
    "Helios text to video",
    "Helios Distilled - Text to Video",
    f"Text to video with Helios Distilled: chunks of 33 frames, 1.4 seconds each, one after the other. {MODELS}",
    ("helios", "helios t2v", "helios text to video", "long video"),
    (400, 620),
    (
        ("CLIPTextEncode", 0, "text", "prompt"),
        ("CLIPTextEncode", 1, "text", "negative_prompt"),
        ("HeliosLoadModel", 0, "model", "model"),
        ("HeliosEmptyHistory", 0, "width", "width"),
        ("HeliosEmptyHistory", 0, "height", "height"),
        ("HeliosChunkChain", 0, "num_chunks", "num_chunks"),
        ("HeliosChunkChain", 0, "seed", "seed"),
        ("HeliosDMDSampler", 0, "steps", "steps"),
        ("HeliosChunkChain", 0, "cfg", "cfg"),
    ),
)
LIVE = Blueprint(
    "Helios live video",
    "Helios Distilled - Live",
    "A film with Helios Distilled that you direct while it is made: open the subgraph for its film strip, or use "
    f"POST /helios/takes/{{id}}/direct. {MODELS}",
    ("helios", "helios live", "helios interactive", "endless video"),
    (400, 560),
    (
        ("HeliosLiveVideo", 0, "text", "prompt"),  # the frontend empties one that is still called text
        ("HeliosLoadModel", 0, "model", "model"),
        ("HeliosEmptyHistory", 0, "width", "width"),
        ("HeliosEmptyHistory", 0, "height", "height"),
        ("HeliosLiveVideo", 0, "max_chunks", "max_chunks"),
        ("HeliosLiveVideo", 0, "blend", "blend"),
        ("HeliosLiveVideo", 0, "seed", "seed"),
        ("HeliosDMDSampler", 0, "steps", "steps"),
        ("HeliosLiveVideo", 0, "filename_prefix", "filename_prefix"),
    ),
)
BLUEPRINTS = (TEXT_TO_VIDEO, LIVE)
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
  if (subgraph.outputs.length) subgraph.renameOutput(subgraph.outputs[0], 'video')
  else {
    // Nothing outside takes what the last node gives.
    const last = byId.at(-1)
    for (const output of last.outputs) subgraph.addOutput(output.name, String(output.type)).connect(output, last)
  }
  subgraph.name = node.title = name
  for (const other of app.graph.nodes.filter(other => other !== node)) app.graph.remove(other)
  node.setSize(size)
  app.canvas.select(node)
  app.canvas.updateSelectedItems?.()
}"""
PUBLISH = "name => app.extensionManager.command.execute('Comfy.PublishSubgraph', { metadata: { name } })"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="blueprints; all where none is named")
    parser.add_argument("--comfyui", metavar="PATH", help="ComfyUI folder instead of the checkout's own")
    options = parser.parse_args()
    program = chromium_path()
    if program is None:
        parser.error("no Chromium: set HELIOS_CHROMIUM to one")
    chosen = [blueprint for blueprint in BLUEPRINTS if not options.names or blueprint.name in options.names]
    # While it lies there its name is taken.
    for blueprint in chosen:
        blueprint.file.unlink(missing_ok=True)
    FOLDER.mkdir(exist_ok=True)
    with template_server(options.comfyui) as server, open_frontend(server.url, program, **PLAIN) as frontend:
        for blueprint in chosen:
            stored = published(server, frontend, blueprint)
            text = json.dumps(tidy(stored, blueprint), indent=2, ensure_ascii=False)
            blueprint.file.write_text(text + "\n", encoding="utf-8")
            print(f"{blueprint.file.relative_to(ROOT)}: {len(stored['definitions']['subgraphs'][0]['nodes'])} nodes")
    return 0


def published(server: ComfyServer, frontend: Frontend, blueprint: Blueprint) -> dict[str, Any]:
    """What the frontend stores of the blueprint."""
    template = json.loads((WORKFLOWS / f"{blueprint.template}.json").read_text(encoding="utf-8"))
    frontend.load_template(template, blueprint.template)
    frontend.page.evaluate(CONVERT, [blueprint.name, blueprint.widgets, blueprint.size])
    with frontend.page.expect_response(lambda response: "/userdata/" in response.url and response.ok):
        frontend.page.evaluate(PUBLISH, blueprint.name)
    if frontend.errors:
        raise RuntimeError("; ".join(frontend.errors))
    return server.get("/userdata/" + urllib.parse.quote(f"subgraphs/{blueprint.name}.json", safe=""))


def tidy(stored: dict[str, Any], blueprint: Blueprint) -> dict[str, Any]:
    """The stored blueprint with what describes it, and with ids that stay however often it is written."""
    (subgraph,) = stored["definitions"]["subgraphs"]
    subgraph.update(name=blueprint.name, category=CATEGORY, description=blueprint.description)
    (node,) = stored["nodes"]
    node.update(pos=[0, 0], order=0)
    stored["last_node_id"] = int(stored["last_node_id"])
    stored["extra"] = {
        "BlueprintDescription": blueprint.description,
        "BlueprintSearchAliases": list(blueprint.search_aliases),
    }
    text = json.dumps(stored, ensure_ascii=False)
    for i, old in enumerate(dict.fromkeys(UUID.findall(text))):
        text = text.replace(old, str(uuid.uuid5(ID_SPACE, f"{blueprint.name} {i}")))
    return json.loads(text)


if __name__ == "__main__":
    sys.exit(main())
