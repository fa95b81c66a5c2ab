"""ComfyUI's shipped frontend in a headless Chromium: open workflows in it and ask what it makes of them.

Used by `export_templates.py` and by the template tests. Needs Playwright and a Chromium; see `chromium_path`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

from helios_setup.environment import BROWSERS

FLAGS = (
    "--no-sandbox",
    # On one virtual machine its zygotes, which wait for work, now and then spun in the kernel for minutes.
    "--no-zygote",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# As after the first start: no tutorial over the graph. Text stays sharp however far the view is zoomed out.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
START_SECONDS = 60
IDLE_SECONDS = 10
# Of what start-up reports, only this is ours: core asks for user files that a new user does not have.
OUR_FILES = "/extensions/"
# Core's default workflow asks a hub, at any time after start-up, how large its models are; the server forbids it, but
# not to pages with `blobs`.
REFUSED_BY_SERVER, HUB = "Content Security Policy", "https://huggingface.co/"

READY = "() => window.app?.vueAppReady && app.extensionManager?.workflow?.activeWorkflow"
LOAD_API = "([graph, name]) => app.loadApiJson(graph, name)"
# The call that the template browser makes for the card a user clicks.
LOAD_TEMPLATE = """async ([graph, name]) => {
  await app.loadGraphData(graph, true, true, name, { openSource: 'template' })
  // Drawn once, so that errors of drawing are seen too.
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
}"""
# Stringified in the page: Playwright would turn what is undefined there into null.
PROMPT = "async () => JSON.stringify((await app.graphToPrompt()).output)"
SERIALIZED = "() => JSON.stringify(app.graph.serialize())"
SIZES = "() => Object.fromEntries(app.graph.nodes.map(node => [node.id, Array.from(node.computeSize())]))"
PROBLEMS = """() => {
  const problems = []
  for (const node of app.graph.nodes) {
    const name = `${node.type} (node ${node.id})`
    if (!(node.type in LiteGraph.registered_node_types)) problems.push(`${name} is not a known node type`)
    if (node.has_errors) problems.push(`${name} is marked as failed`)
    for (const widget of node.widgets ?? []) {
      if (widget.type !== 'combo') continue
      const values = widget.options.values
      const options = typeof values === 'function' ? values(widget, node) : values
      if (!options.includes(widget.value)) problems.push(`${name}: ${widget.name} has no option ${widget.value}`)
    }
    for (const input of node.inputs ?? []) {
      const link = app.graph.links.get(input.link)
      const optional = input.shape === LiteGraph.GRID_SHAPE + 1
      if (!link && !input.widget && !optional) problems.push(`${name}: ${input.name} is not connected`)
      if (!link) continue
      const output = app.graph.getNodeById(link.origin_id)?.outputs[link.origin_slot]
      if (!output) problems.push(`${name}: the link of ${input.name} comes from nowhere`)
      else if (!LiteGraph.isValidConnection(output.type, input.type))
        problems.push(`${name}: ${input.name} is ${input.type} and gets ${output.type}`)
    }
  }
  for (const element of document.querySelectorAll('[role=dialog], [role=alert], .p-toast-message'))
    if (element.checkVisibility()) problems.push(`the page shows: ${element.innerText.trim()}`)
  return problems
}"""


CLIPS_LOADED = """() => app.graph.nodes.filter(node => node.type === 'LoadVideo')
  .every(node => node.widgets.some(widget => widget.name === 'video-preview'))"""
CLIP_SECONDS = 20


def chromium_path() -> str | None:
    """The browser to drive: HELIOS_CHROMIUM, or the first known program on PATH; None where there is none."""
    return os.environ.get("HELIOS_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


class Frontend:
    """One open page. `errors` grows with every error that the page or its console reports."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _on_console(self, message: Any) -> None:
        source = message.location.get("url", "").removeprefix(self.url)
        asked_hub = REFUSED_BY_SERVER in message.text or source.startswith(HUB)
        if message.type == "error" and not asked_hub:
            self.errors.append(f"{message.text} ({source})")

    def start(self) -> None:
        """Open the page; of what start-up reports, only errors of the packs' own files are kept."""
        from playwright import sync_api

        self.page.goto(self.url)
        self.page.wait_for_function(READY, timeout=START_SECONDS * 1000)
        with contextlib.suppress(sync_api.TimeoutError):  # of a page that shows a growing film, which is never idle
            self.page.wait_for_load_state("networkidle", timeout=IDLE_SECONDS * 1000)
        self.errors = [error for error in self.errors if OUR_FILES in error]

    def load_api(self, graph: dict, name: str) -> None:
        """Open an API-format graph, as dropping its file on the canvas does."""
        self.page.evaluate(LOAD_API, [graph, name])
        self._settle()

    def load_template(self, graph: dict, name: str) -> None:
        """Open a UI-format graph, as picking it in the template browser does (fits the view to it)."""
        self.page.evaluate(LOAD_TEMPLATE, [graph, name])
        self._settle()

    def _settle(self) -> None:
        """Waits for the preview that a clip's node grows once its file has loaded."""
        self.page.wait_for_function(CLIPS_LOADED, timeout=CLIP_SECONDS * 1000)
        self.page.wait_for_load_state("networkidle")

    def prompt(self) -> dict:
        """The open graph in API format: what the Run button would queue."""
        return json.loads(self.page.evaluate(PROMPT))

    def serialized(self) -> dict:
        """The open graph in UI format: what saving it would write."""
        return json.loads(self.page.evaluate(SERIALIZED))

    def least_sizes(self) -> dict[str, tuple[float, float]]:
        """The smallest (width, height) in which each node shows all of its inputs, by node id."""
        return {node: (width, height) for node, (width, height) in self.page.evaluate(SIZES).items()}

    def problems(self) -> list[str]:
        """What a user would see in red or in a dialog: one sentence each, none for a sound workflow."""
        return self.page.evaluate(PROBLEMS)


@contextlib.contextmanager
def open_frontend(
    url: str, program: str, width: int = 1600, height: int = 900, blobs: bool = False, script: str = "", **settings: Any
) -> Iterator[Frontend]:
    """The frontend that the server at `url` ships, as a new user finds it.

    Args:
        program: the Chromium to start.
        blobs: lets the page play media that it makes, which a server with ``--disable-api-nodes`` forbids.
        script: runs in the page before anything of its own.
        settings: values of frontend settings beside SETTINGS. None of them reaches the server.
    """
    from playwright.sync_api import sync_playwright

    answer = json.dumps({**SETTINGS, **settings})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, bypass_csp=blobs)
            page.route("**/api/settings", lambda route: route.fulfill(body=answer, content_type="application/json"))
            page.route("**/api/settings/*", lambda route: route.fulfill(body="", status=200))
            if script:
                page.add_init_script(script)
            frontend = Frontend(page, url)
            frontend.start()
            yield frontend
        finally:
            browser.close()
