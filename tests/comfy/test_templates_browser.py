"""The templates, opened in the frontend that ComfyUI ships, by a real browser."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helios_comfy_graphs import live
from helios_tools import frontend as browser
from helios_tools.templates import TEMPLATES

from helios_setup.paths import API_WORKFLOWS, PACK_NAME, ROOT
from helios_setup.server import ComfyServer, failure, output_files

WORKFLOWS = ROOT / "workflows"
# More would make the template browser slow to fill.
LARGEST_THUMBNAIL = 200_000


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "new-design"])
def frontend(request: pytest.FixtureRequest, comfy: ComfyServer, chromium: str) -> Iterator[Any]:
    """The frontend in one of its two node designs, as a new user finds it."""
    with browser.open_frontend(comfy.url, chromium, **{"Comfy.VueNodes.Enabled": request.param}) as opened:
        yield opened


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.api)
def test_template_opens_sound(frontend: Any, template: Any) -> None:
    workflow = read(WORKFLOWS / f"{template.title}.json")
    frontend.load_template(workflow, template.title)
    assert frontend.problems() == []
    assert frontend.errors == []
    assert {node["type"] for node in workflow["nodes"]} == {node["type"] for node in frontend.serialized()["nodes"]}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.api)
def test_template_queues_its_api_graph(frontend: Any, template: Any) -> None:
    graph = read(API_WORKFLOWS / f"{template.api}.json")
    frontend.load_template(read(WORKFLOWS / f"{template.title}.json"), template.title)
    prompt = frontend.prompt()
    assert prompt.keys() == graph.keys()
    for node, wanted in graph.items():
        found = prompt[node]
        assert (found["class_type"], found["_meta"]) == (wanted["class_type"], wanted["_meta"])
        assert {name: found["inputs"].get(name) for name in wanted["inputs"]} == wanted["inputs"]
    # What the graph leaves to core's defaults, and nothing else, may come on top.
    frontend.load_api(graph, template.api)
    assert prompt == frontend.prompt()


def press_run(frontend: Any) -> dict[str, Any]:
    """What the server answers to a press of the Run button."""
    with frontend.page.expect_response(lambda response: response.url.endswith("/prompt")) as answer:
        frontend.page.get_by_test_id("queue-button").click()
    assert answer.value.status == 200, answer.value.text()
    return answer.value.json()


@pytest.fixture
def waiting(comfy: ComfyServer) -> Iterator[None]:
    """A server whose queue waits, without any work: for a live film that is paused."""
    running = comfy.queue(live("waiting", resume=False))
    started = comfy.wait_for_event(
        lambda event: (
            event.type == "helios.take" and event.data["kind"] == "start" and event.data["take"]["prompt_id"] == running
        ),
        timeout=240,
    )
    direct = f"/helios/takes/{started.data['id']}/direct"
    assert comfy.post_raw(direct, {"version": 1, "do": "pause"})[0] == 200
    yield
    comfy.post_raw("/queue", {"clear": True})
    assert comfy.post_raw(direct, {"version": 1, "do": "stop"})[0] == 200
    assert failure(comfy.wait(running)) is None


# In one design: both queue the same graphs, as the test above shows.
@pytest.mark.parametrize("frontend", [True], ids=["new-design"], indirect=True)
def test_first_press_of_run_is_accepted(frontend: Any, waiting: None) -> None:
    """On a machine without weights, with nothing changed: what a new user does first."""
    refused = {}
    for template in TEMPLATES:
        frontend.load_template(read(WORKFLOWS / f"{template.title}.json"), template.title)
        refused[template.title] = press_run(frontend)["node_errors"]
    assert len(refused) == len(TEMPLATES) and not any(refused.values()), refused
    assert frontend.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("new_design", [False, True], ids=["classic", "new-design"])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.api)
def test_first_press_of_run_gives_a_video(comfy: ComfyServer, chromium: str, template: Any, new_design: bool) -> None:
    with browser.open_frontend(comfy.url, chromium, **{"Comfy.VueNodes.Enabled": new_design}) as frontend:
        frontend.load_template(read(WORKFLOWS / f"{template.title}.json"), template.title)
        entry = comfy.wait(press_run(frontend)["prompt_id"], timeout=3600)
        assert failure(entry) is None
        # A film that is processed afterwards lies there too.
        *_, video = output_files(entry, comfy.log_file.parent / "output")
        assert video.suffix == ".mp4" and video.stat().st_size
        assert frontend.errors == []


def test_broken_template_is_noticed(frontend: Any) -> None:
    """The checks above can fail: an unknown node, an impossible choice, a missing link."""
    workflow = read(WORKFLOWS / f"{TEMPLATES[0].title}.json")
    sampler = next(node for node in workflow["nodes"] if node["type"] == "HeliosDMDSampler")
    sampler["type"] = "HeliosNoSuchSampler"
    save = next(node for node in workflow["nodes"] if node["type"] == "SaveVideo")
    save["widgets_values"] = ["video/Helios", "no such format", *save["widgets_values"][2:]]
    cut = save["inputs"][0]["link"]
    save["inputs"][0]["link"] = None
    workflow["links"] = [link for link in workflow["links"] if link[0] != cut]
    frontend.load_template(workflow, "Broken")
    problems = "\n".join(frontend.problems())
    frontend.errors.clear()
    assert "HeliosNoSuchSampler" in problems
    assert "format has no option no such format" in problems
    assert "SaveVideo" in problems and "video is not connected" in problems


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.api)
def test_no_link_runs_backwards_or_behind_a_node(template: Any) -> None:
    """From one column to the next, or above everything."""
    workflow = read(WORKFLOWS / f"{template.title}.json")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    columns = sorted({node["pos"][0] for node in workflow["nodes"] if node["type"] != "MarkdownNote"})
    top = min(group["bounding"][1] for group in workflow["groups"])
    routed = {link: part["pos"] for part in workflow["extra"].get("reroutes", ()) for link in part["linkIds"]}
    for link, origin, _, target, *_ in workflow["links"]:
        left, right = (columns.index(nodes[node]["pos"][0]) for node in (origin, target))
        assert left < right
        assert routed[link][1] < top if right - left > 1 else link not in routed
    notes = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert all(note["pos"][1] + note["size"][1] < top for note in notes)
    assert all(note["widgets_values"][0].startswith("# ") for note in notes), "what can be read at the first zoom"


def test_the_template_browser_calls_the_pack_by_its_name(comfy: ComfyServer) -> None:
    for language in ("en", "zh"):
        assert comfy.get("/i18n")[language]["templateWorkflows"]["category"] == {PACK_NAME: "Helios"}


def test_template_browser_lists_the_templates(comfy: ComfyServer) -> None:
    listed = comfy.get("/workflow_templates")[PACK_NAME]
    assert sorted(listed) == sorted(template.title for template in TEMPLATES)
    assert sorted(file.stem for file in API_WORKFLOWS.glob("*.json")) == sorted(template.api for template in TEMPLATES)
    for name in listed:
        assert comfy.get(f"/api/workflow_templates/{PACK_NAME}/{urllib.parse.quote(name)}.json") == read(
            WORKFLOWS / f"{name}.json"
        )
        thumbnail = (WORKFLOWS / f"{name}.jpg").read_bytes()
        assert thumbnail.startswith(b"\xff\xd8\xff") and len(thumbnail) < LARGEST_THUMBNAIL
