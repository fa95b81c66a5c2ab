"""Write locales/en/nodeDefs.json, the English names and tooltips, from what the nodes say themselves.

`python -m tools.locales` asks a running pack for /object_info. The Chinese file beside it is written by hand; tests
compare both with the nodes. Needs `python run.py setup`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from helios_setup.paths import ROOT

from .serving import template_server

LOCALES = ROOT / "locales"
PREFIX = "Helios"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", metavar="PATH", help="ComfyUI folder instead of the checkout's own")
    options = parser.parse_args()
    with template_server(options.comfyui) as server:
        definitions = node_definitions(server.get("/object_info"))
    file = LOCALES / "en" / "nodeDefs.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_text(definitions), encoding="utf-8")
    print(f"{file.relative_to(ROOT)}: {len(definitions)} nodes")
    return 0


def as_text(definitions: Mapping[str, Any]) -> str:
    return json.dumps(definitions, indent=2, ensure_ascii=False) + "\n"


def node_definitions(object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The frontend's nodeDefs of this pack's nodes: names and tooltips of inputs by id, of outputs by index."""
    return {node: _definition(info) for node, info in object_info.items() if node.startswith(PREFIX)}


def inputs_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """A node's visible inputs, with their options, by id."""
    groups = (info["input"].get(group, {}) for group in ("required", "optional"))
    return {name: spec[1] for group in groups for name, spec in group.items()}


def _definition(info: Mapping[str, Any]) -> dict[str, Any]:
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {
            name: {"name": options.get("display_name", name), "tooltip": options.get("tooltip", "")}
            for name, options in inputs_of(info).items()
        },
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    }


if __name__ == "__main__":
    sys.exit(main())
