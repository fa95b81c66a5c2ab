"""The prompt schedule editor, used in the frontend that ComfyUI ships, by a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helios_tools import frontend as browser

from helios_core.errors import HeliosError
from helios_core.take.prompts import PromptSchedule, parse_schedule, schedule_from_text
from helios_setup.paths import PACK_NAME, ROOT
from helios_setup.server import ComfyServer

SCRIPT = ROOT / "web" / "schedule_editor.js"
LARGEST_SCRIPT = 16 * 1024
NODE = "2"
GRAPH = {
    "1": {"class_type": "HeliosTextEncoderLoader", "inputs": {"text_encoder": "helios-tiny-distilled"}},
    NODE: {
        "class_type": "HeliosPromptScheduleText",
        "inputs": {
            "clip": ["1", 0],
            "blend": 3,
            "text": "0: a calm sea at noon\n7: dark clouds gather over the sea, the wind rises\n14: a storm breaks out",
        },
    },
}
# Read by the editor and by the server: rows, or why there are none.
READINGS = (
    "0: a boat\n7: a storm",
    "0: a boat / 7: a storm / 9: rain",
    "0: a boat\n7~2: a storm\n9~0: rain",
    "a prompt without numbers, 16:9, in/out 3/4: half",
    "0: two\nlines\n12: and: colons",
    "  0 : spaces   \n\n  3:x",
    "0:a/7: no space before the slash",
    "first words 0: too late",
    "first words\n0: too late",
    "",
)
# Refused by the server, with the row that the editor names.
MISTAKES = {
    "0: a boat\n7: a storm\n7: rain": "Row 3 begins at chunk 7, but row 2 begins at 7. Let row 3 begin at 8 or later.",
    "0: a boat\n9: a storm\n4: rain": "Row 3 begins at chunk 4, but row 2 begins at 9. Let row 3 begin at 10 or later.",
    "2: a boat": "Row 1 begins at chunk 2. The first row begins at 0.",
    "0: a boat\n7:": "Row 2 has no prompt yet. Write one, or remove the row.",
    "a boat\n7: a storm": "The text begins with “a boat 7: a storm”",
}
FOCUS = """node => {
  app.extensionManager.focusMode = true
  const { pos, size } = app.graph.getNodeById(node)
  app.canvas.ds.fitToBounds([pos[0] - 40, pos[1] - 60, size[0] + 80, size[1] + 100])
  app.canvas.setDirty(true, true)
}"""
SET_WIDGET = """([node, name, value]) => {
  const widget = app.graph.getNodeById(node).widgets.find(widget => widget.name === name)
  widget.value = value
  widget.callback?.(value)
}"""
WIDGET = "([node, name]) => app.graph.getNodeById(node).widgets.find(widget => widget.name === name).value"
CAPTURE = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"
PARSE = f"async text => (await import('/extensions/{PACK_NAME}/lib/schedule.js')).parseSchedule(text)"


class Editor:
    """The editor of node 2, as a user works with it."""

    def __init__(self, frontend: Any) -> None:
        self.frontend, self.page = frontend, frontend.page
        self.element = self.page.locator(".helios-schedule")

    def open(self) -> None:
        self.frontend.load_api(GRAPH, "Schedule")
        self.page.evaluate(FOCUS, NODE)
        self.element.wait_for()

    def rows(self) -> list[tuple[str, str, str]]:
        rows = self.element.locator(".row:not(.head)").all()
        parts = (".first", ".seconds", "textarea")
        return [tuple(row.locator(part).input_value() for part in parts) for row in rows]  # type: ignore[misc]

    def fill(self, row: int, part: str, value: str) -> None:
        self.element.locator(".row:not(.head)").nth(row).locator(part).fill(value)
        self.page.keyboard.press("Tab")

    def press(self, name: str) -> None:
        self.element.get_by_role("button", name=name).last.click()

    def message(self) -> str:
        status = self.element.get_by_role("status")
        return " ".join(status.inner_text().split()) if status.is_visible() else ""

    def set(self, name: str, value: Any) -> None:
        self.page.evaluate(SET_WIDGET, [NODE, name, value])

    def get(self, name: str) -> Any:
        return self.page.evaluate(WIDGET, [NODE, name])

    def queued(self) -> dict[str, Any]:
        return self.frontend.prompt()[NODE]["inputs"]


@pytest.fixture(
    scope="module", params=[pytest.param(False, marks=pytest.mark.slow), True], ids=["classic", "new-design"]
)
def opened(request: pytest.FixtureRequest, comfy: ComfyServer, chromium: str) -> Iterator[Editor]:
    with browser.open_frontend(comfy.url, chromium, **{"Comfy.VueNodes.Enabled": request.param}) as frontend:
        yield Editor(frontend)


@pytest.fixture
def editor(opened: Editor) -> Iterator[Editor]:
    opened.open()
    yield opened
    errors, opened.frontend.errors = opened.frontend.errors, []
    assert errors == []


def test_edits_reach_the_text_and_the_queue(editor: Editor, screenshots: Path, request: pytest.FixtureRequest) -> None:
    assert editor.rows() == [
        ("0", "0.0", "a calm sea at noon"),
        ("7", "9.6", "dark clouds gather over the sea, the wind rises"),
        ("14", "19.3", "a storm breaks out"),
    ]
    editor.page.screenshot(path=str(screenshots / f"prompt-editor-{request.node.callspec.id}.png"))
    editor.fill(1, ".seconds", "11")
    editor.fill(2, ".first", "20")
    editor.fill(0, "textarea", "a calm sea at dusk")
    editor.press("+ Add a row")
    assert editor.message() == "Row 4 has no prompt yet. Write one, or remove the row."
    editor.page.keyboard.type("the sun comes back")
    wanted = (
        "0: a calm sea at dusk\n8: dark clouds gather over the sea, the wind rises\n"
        "20: a storm breaks out\n27: the sun comes back"
    )
    editor.page.keyboard.press("Tab")
    editor.set("blend", 5)
    assert editor.element.locator(".foot input").count() == 0, "blend is asked for once, by the node's own widget"
    assert (editor.message(), editor.get("text")) == ("", wanted)
    assert editor.queued() == {"clip": ["1", 0], "text": wanted, "blend": 5}
    editor.press("Remove this row")
    assert editor.queued()["text"] == wanted.rpartition("\n")[0]
    saved = next(node for node in editor.frontend.serialized()["nodes"] if str(node["id"]) == NODE)
    assert saved["widgets_values"] == [wanted.rpartition("\n")[0], 5], "the editor itself is not saved"


def test_text_edits_reach_the_rows(editor: Editor) -> None:
    editor.set("text", "0: one / 4: two")
    assert editor.rows() == [("0", "0.0", "one"), ("4", "5.5", "two")]
    assert editor.get("text") == "0: one / 4: two", "reading rows does not rewrite the text"
    # Typed by hand into the node's own text.
    text = editor.page.locator("textarea:not(.helios-schedule textarea)").first
    text.fill("0: three\n9: four")
    assert editor.rows() == [("0", "0.0", "three"), ("9", "12.4", "four")]


def test_prompts_move_by_drag_and_by_keys(editor: Editor) -> None:
    handles = editor.element.locator(".move")
    handles.nth(2).drag_to(editor.element.locator(".row:not(.head)").nth(0))
    assert [(first, prompt) for first, _, prompt in editor.rows()] == [
        ("0", "a storm breaks out"),
        ("7", "a calm sea at noon"),
        ("14", "dark clouds gather over the sea, the wind rises"),
    ]
    handles.nth(0).focus()
    editor.page.keyboard.press("ArrowDown")
    assert editor.queued()["text"].startswith("0: a calm sea at noon\n7: a storm breaks out\n14: dark")


def test_rows_are_read_as_the_server_reads_them(editor: Editor) -> None:
    for text in READINGS:
        try:
            schedule = schedule_from_text(text)
            # The editor keeps a row's own blend as it is written.
            blends = {first: str(blend) for first, blend in schedule.blends}
            wanted = [(first, blends.get(first), prompt) for first, prompt in schedule.rows]
        except HeliosError:
            wanted = None
        read = editor.page.evaluate(PARSE, text)
        assert (read and [(row["first"], row.get("blend"), row["prompt"]) for row in read]) == wanted


def test_undo_brings_the_rows_back(editor: Editor) -> None:
    editor.page.evaluate(CAPTURE)
    editor.set("text", "0: something else")
    editor.page.evaluate(CAPTURE)
    editor.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    editor.page.wait_for_function(
        f"([node, name]) => ({WIDGET})([node, name]).startsWith('0: a calm')", arg=[NODE, "text"]
    )
    assert [first for first, _, _ in editor.rows()] == ["0", "7", "14"]
    # The rows on screen are those of the node that is there now.
    editor.fill(2, ".first", "15")
    assert editor.queued()["text"].endswith("15: a storm breaks out")


def test_mistakes_are_told_calmly(editor: Editor, screenshots: Path, request: pytest.FixtureRequest) -> None:
    for text, message in MISTAKES.items():
        with pytest.raises(HeliosError):
            PromptSchedule(tuple(parse_schedule(text)))
        editor.set("text", text)
        assert editor.message().startswith(message)
        assert editor.queued()["text"] == text, "the text stays as it was written"
    editor.set("text", next(iter(MISTAKES)))
    editor.page.screenshot(path=str(screenshots / f"prompt-editor-mistake-{request.node.callspec.id}.png"))
    editor.fill(2, ".first", "14")
    assert (editor.message(), editor.queued()["text"]) == ("", "0: a boat\n7: a storm\n14: rain")
    assert editor.page.locator("[role=alert], .p-toast-message").count() == 0


def test_removed_nodes_leave_nothing(editor: Editor) -> None:
    editor.page.evaluate("node => app.graph.remove(app.graph.getNodeById(node))", NODE)
    editor.page.wait_for_function("document.querySelectorAll('.helios-schedule').length === 0")


def test_script_is_small() -> None:
    assert SCRIPT.stat().st_size < LARGEST_SCRIPT
