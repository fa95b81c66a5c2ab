"""Write the templates, workflows/*.json, from the API graphs in workflows/api.

`python -m tools.export_templates` opens every API graph in the frontend that ComfyUI ships, lays it out as
`templates.py` says, saves what the frontend serializes, and opens the result again to see that it queues the
very same prompt. `template_pictures.py` makes their cards. Needs `python run.py setup`, Playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from helios_setup.paths import API_WORKFLOWS, ROOT

from .frontend import Frontend, chromium_path, open_frontend
from .serving import PLAIN, template_server
from .template_layout import Layout, arrange
from .templates import COLUMNS, HEIGHTS, TEMPLATES, Template

WORKFLOWS = ROOT / "workflows"
# Any fixed number space does: a template keeps its id however often it is written.
ID_SPACE = uuid.UUID("6f4b2f7e-7c0c-4c3e-9a0e-48656c696f73")

APPLY = """([nodes, groups, notes, routes]) => {
  for (const [id, box] of nodes) {
    const node = app.graph.getNodeById(id)
    node.pos = [box.x, box.y]
    node.setSize([box.width, box.height])
  }
  for (const [title, color, box] of groups) {
    const group = new LiteGraph.LGraphGroup(title)
    group.color = color
    group.pos = [box.x, box.y]
    group.size = [box.width, box.height]
    app.graph.add(group)
  }
  for (const [title, text, box] of notes) {
    const node = LiteGraph.createNode('MarkdownNote', title)
    app.graph.add(node)
    node.pos = [box.x, box.y]
    node.setSize([box.width, box.height])
    node.widgets[0].value = text
    node.color = '#222'
    node.bgcolor = '#000'
  }
  for (const [id, name, points] of routes) {
    const input = app.graph.getNodeById(id).inputs.find(slot => slot.name === name)
    for (const point of points) app.graph.createReroute(point, app.graph.getLink(input.link))
  }
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", metavar="PATH", help="ComfyUI folder instead of the checkout's own")
    parser.add_argument("--screens", metavar="FOLDER", type=Path, help="also save full screenshots here, to look at")
    parser.add_argument("--only", metavar="API", help="export this one of workflows/api instead of all")
    options = parser.parse_args()
    program = chromium_path()
    if program is None:
        parser.error("no Chromium: set HELIOS_CHROMIUM to one")
    missing = {file.stem for file in API_WORKFLOWS.glob("*.json")} ^ {template.api for template in TEMPLATES}
    if missing:
        parser.error(f"templates.py and workflows/api differ in {', '.join(sorted(missing))}")
    with template_server(options.comfyui) as server:
        for template in TEMPLATES:
            if options.only not in (None, template.api):
                continue
            export(template, server.url, program)
            for vue_nodes in (False, True) if options.screens else ():
                look(template, server.url, program, vue_nodes, options.screens)
    return 0


def export(template: Template, url: str, program: str) -> None:
    """Write one template.

    Raises:
        RuntimeError: the frontend does not take the template for what its API graph says.
    """
    graph = json.loads((API_WORKFLOWS / f"{template.api}.json").read_text(encoding="utf-8"))
    with open_frontend(url, program) as frontend:
        frontend.load_api(graph, template.title)
        layout = arrange(graph, frontend.least_sizes(), COLUMNS, template.notes, HEIGHTS)
        apply_layout(frontend, layout)
        wanted = frontend.prompt()
        laid_out = frontend.serialized()
        # Some nodes set their own size when they are opened; only what survives that is worth saving.
        frontend.load_template(laid_out, template.title)
        workflow = tidy(frontend.serialized(), template.title)
    with open_frontend(url, program, **PLAIN) as frontend:
        frontend.load_template(workflow, template.title)
        check(template, frontend, wanted, workflow)
        file = WORKFLOWS / f"{template.title}.json"
        file.write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{file.relative_to(ROOT)}: {len(graph)} nodes, {len(template.notes)} notes")


def apply_layout(frontend: Frontend, layout: Layout) -> None:
    nodes = [(int(node), vars(box)) for node, box in layout.nodes.items()]
    groups = [(group.title, group.color, vars(box)) for group, box in layout.groups]
    notes = [(note.title, note.text, vars(box)) for note, box in layout.notes]
    routes = [(int(node), name, points) for (node, name), points in layout.routes.items()]
    frontend.page.evaluate(APPLY, [nodes, groups, notes, routes])


def tidy(workflow: dict[str, Any], title: str) -> dict[str, Any]:
    """The serialized graph with what varies from run to run made fixed: its id, the numbers of links, the view."""
    numbers = {link[0]: number for number, link in enumerate(workflow["links"], start=1)}
    workflow["links"] = [[numbers[link[0]], *link[1:]] for link in workflow["links"]]
    for node in workflow["nodes"]:
        for slot in node.get("inputs", ()):
            slot["link"] = numbers.get(slot["link"])
        for slot in node.get("outputs", ()):
            slot["links"] = [numbers[link] for link in slot["links"] or ()]
    workflow["nodes"].sort(key=lambda node: node["id"])
    for part in workflow["extra"].get("linkExtensions", ()):
        part["id"] = numbers[part["id"]]
    for part in workflow["extra"].get("reroutes", ()):
        part["linkIds"] = sorted(numbers[link] for link in part["linkIds"])
    # The frontend fits a template to the window.
    workflow["extra"].pop("ds", None)
    return {
        **workflow,
        "id": str(uuid.uuid5(ID_SPACE, title)),
        "last_node_id": max(node["id"] for node in workflow["nodes"]),
        "last_link_id": len(workflow["links"]),
    }


def check(template: Template, frontend: Frontend, wanted: dict, workflow: dict) -> None:
    problems = [*frontend.errors, *frontend.problems()]
    queued, wanted = without_previews(frontend.prompt()), without_previews(wanted)
    changed = sorted(key for key in queued.keys() | wanted.keys() if queued.get(key) != wanted.get(key))
    problems += [f"node {key} queues {queued.get(key)} instead of {wanted.get(key)}" for key in changed]
    if tidy(frontend.serialized(), template.title) != workflow:
        problems.append("the frontend saves it differently from how it was written")
    if problems:
        raise RuntimeError(f"{template.title}: " + "; ".join(problems))


def without_previews(prompt: dict[str, Any]) -> dict[str, Any]:
    """Without the empty preview widgets that the frontend adds to nodes when their file has loaded."""
    for node in prompt.values():
        for name in [name for name, value in node["inputs"].items() if name.endswith("-preview") and value == ""]:
            del node["inputs"][name]
    return prompt


def look(template: Template, url: str, program: str, vue_nodes: bool, folder: Path) -> None:
    """Save what a user sees on opening a template, with the classic or the new node design."""
    folder.mkdir(parents=True, exist_ok=True)
    workflow = json.loads((WORKFLOWS / f"{template.title}.json").read_text(encoding="utf-8"))
    design: dict[str, Any] = {"Comfy.VueNodes.Enabled": vue_nodes}
    with open_frontend(url, program, **design) as frontend:
        frontend.load_template(workflow, template.title)
        frontend.page.wait_for_timeout(1500)
        frontend.page.screenshot(path=str(folder / f"{template.api}-{'new' if vue_nodes else 'classic'}.png"))


if __name__ == "__main__":
    sys.exit(main())
