"""Help pages, names in two languages, defaults and the blueprint, as the real server and frontend show them."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helios_comfy_strip import BEGIN, CHANGE, CONNECT_SCHEDULE, FILM, Strip, long_take
from helios_tools import frontend as browser
from helios_tools import locales

from helios_setup.paths import API_WORKFLOWS, PACK_NAME, ROOT
from helios_setup.server import ComfyServer

DOCS = ROOT / "web" / "docs"
# Bytes a node, on average: all pages together stay a small download.
MEAN_PICTURE = 55_000
BLUEPRINTS = {"Helios text to video": "helios_distilled_t2v", "Helios live video": "helios_distilled_live"}
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# Names that Chinese users of ComfyUI write in Latin letters.
LATIN_NAMES = {"VAE", "CLIP", "CFG", "gamma", "CFG-Zero*", "Latent"}
UNLIMITED = 2**64 - 1

# The released configuration, by node and input; what is left out has no default.
HISTORY_NOISE = {"noise_sigma_min": 0.111, "noise_sigma_max": 0.135, "seed": 0, "skip_first_chunk": False}
CHUNK = {"cfg": 1.0, "seed": 0}
STAGES = {"stage_range": "", "gamma": "1/3"}
RELEASED: dict[str, dict[str, Any]] = {
    "HeliosLoadModel": {"model": "distilled", "weight_dtype": "default", "attention": "auto"},
    "HeliosModelLoader": {"weight_dtype": "default", "attention": "auto", "variant": "auto"},
    "HeliosDownloadModel": {"variant": "distilled"},
    "HeliosLoraLoader": {"strength": 1.0},
    "HeliosEmptyHistory": {"width": 640, "height": 384, "batch_size": 1},
    "HeliosImageHistory": {"width": 640, "height": 384, **HISTORY_NOISE},
    "HeliosVideoHistory": {"width": 640, "height": 384, **HISTORY_NOISE},
    "HeliosPromptSchedule": {"first_chunks": "0, 7, 14", "blend": 3},
    "HeliosPromptScheduleText": {"blend": 3},
    "HeliosBaseSampler": {"steps": 50, "solver": "unipc"},
    "HeliosPyramidSampler": {
        "steps": "20, 20, 20",
        "solver": "unipc",
        "cfg_zero_star": True,
        "zero_init": True,
        "zero_steps": 1,
        **STAGES,
    },
    "HeliosDMDSampler": {"steps": "2, 2, 2", "amplify_first_chunk": True, **STAGES},
    "HeliosSampleChunk": CHUNK,
    "HeliosChunkChain": {**CHUNK, "num_chunks": 3},
    "HeliosRenderVideo": {
        **CHUNK,
        "num_chunks": 3,
        "fps": 24.0,
        "codec": "h264",
        "quality": 18,
        "resume": True,
        "write_file": True,
    },
    "HeliosLiveVideo": {
        **CHUNK,
        "max_chunks": 0,
        "blend": 0,
        "fps": 24.0,
        "codec": "h264",
        "quality": 18,
        "resume": True,
        "seed_changes": "",
    },
    "HeliosJoinVideos": {"fps": 24.0, "codec": "h264", "quality": 18, "audio_offset": 0.0},
    "HeliosFarmRender": {"model": "Helios-Distilled", "width": 640, "height": 384, "num_chunks": 3, "seed": 0},
    "HeliosAntiDrift": {"threshold": 0.15, "strength": 0.1, "momentum": 0.9},
}
ADVANCED = {
    "HeliosLoadModel": {"weight_dtype", "attention"},
    "HeliosModelLoader": {"weight_dtype", "attention", "variant"},
    "HeliosImageHistory": {"noise_sigma_min", "noise_sigma_max", "skip_first_chunk"},
    "HeliosVideoHistory": {"noise_sigma_min", "noise_sigma_max", "skip_first_chunk"},
    "HeliosBaseSampler": {"solver"},
    "HeliosPyramidSampler": {"solver", "zero_steps", "stage_range", "gamma"},
    "HeliosDMDSampler": {"stage_range", "gamma"},
    "HeliosChunkChain": {"take", "seed_changes"},
    "HeliosRenderVideo": {"take", "seed_changes", "audio_offset", "write_file"},
    "HeliosLiveVideo": {"take", "seed_changes", "audio_offset"},
    "HeliosJoinVideos": {"audio_offset"},
    "HeliosDriftReport": {"chunk_frames"},
    "HeliosAntiDrift": {"momentum"},
    "HeliosColourAnchor": {"chunk_frames"},
    "HeliosChunkFrames": {"chunk_frames"},
    "HeliosSplitVideo": {"chunk_frames"},
    "HeliosProcessVideo": {"frames_at_once"},
    "HeliosFarmRender": {"seed_changes"},
}

ADD_BLUEPRINT = """async id => {
  const response = await fetch(`/global_subgraphs/${id}`)
  const blueprint = JSON.parse((await response.json()).data)
  app.canvas._deserializeItems({ nodes: blueprint.nodes, subgraphs: blueprint.definitions.subgraphs }, {})
}"""
SHOWN = """type => {
  const node = app.graph.nodes.find(node => node.type === type)
  return [node.title, ...node.inputs.map(input => input.localized_name)]
}"""
# Brings a node into view and returns where its title is in the window. An opened template is first fitted to it.
FOCUS = """async type => {
  const node = app.graph.nodes.find(node => node.type === type)
  await new Promise(done => setTimeout(done, 500))
  app.canvas.ds.scale = 1
  app.canvas.centerOnNode(node)
  const { offset, scale } = app.canvas.ds
  const { left, top } = app.canvas.canvas.getBoundingClientRect()
  return [(node.pos[0] + 60 + offset[0]) * scale + left, (node.pos[1] - 12 + offset[1]) * scale + top]
}"""


@pytest.fixture(scope="module")
def nodes(comfy: ComfyServer) -> dict[str, dict[str, Any]]:
    """/object_info of this pack's nodes."""
    info = comfy.get("/object_info")
    return {name: entry for name, entry in info.items() if entry["python_module"] == f"custom_nodes.{PACK_NAME}"}


def served(comfy: ComfyServer, path: str) -> tuple[int, bytes]:
    request = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with request.open(comfy.url + urllib.parse.quote(path)) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def entries(page: str) -> dict[str, str]:
    """What stands behind each name of a page's lists."""
    return dict(re.findall(r"^- \*\*`(\w+)`\*\* (.{10,})$", page, re.MULTILINE))


# -- help pages -------------------------------------------------------------------------------------


def test_every_node_has_a_help_page_and_no_page_is_left_over(nodes: dict[str, Any]) -> None:
    assert {file.stem for file in DOCS.glob("*.md")} == set(nodes)


def test_help_pages_are_served_and_complete(comfy: ComfyServer, nodes: dict[str, Any]) -> None:
    for name, info in nodes.items():
        status, content = served(comfy, f"/extensions/{PACK_NAME}/docs/{name}.md")
        page = content.decode()
        assert status == 200, name
        assert page.startswith(f"# {info['display_name']}\n")
        assert "\n## Inputs\n" in page and "\n## Outputs\n" in page and "\n## Common mistakes\n" in page
        inputs, outputs = page.split("\n## Outputs\n")
        assert entries(inputs).keys() == locales.inputs_of(info).keys(), name
        assert entries(outputs).keys() == set(info["output_name"]), name


def test_help_pages_tell_defaults_and_ranges(nodes: dict[str, Any]) -> None:
    """A changed default or limit makes the page wrong, and is noticed here."""
    checked = 0
    for name, info in nodes.items():
        facts = entries((DOCS / f"{name}.md").read_text(encoding="utf-8").split("\n## Outputs\n")[0])
        for key, options in locales.inputs_of(info).items():
            told = facts[key].split(")*")[0].removeprefix("*(").split("; ")
            assert ("advanced" in told) == bool(options.get("advanced")), (name, key)
            if isinstance(options.get("min"), (int, float)):
                top = "2^64 - 1" if options["max"] == UNLIMITED else f"{options['max']:g}"
                assert told[-1].startswith(f"{options['min']:g} to {top}"), (name, key)
                assert f"default {options['default']:g}" in told, (name, key)
                checked += 1
            elif isinstance(options.get("default"), bool):
                assert f"default {'on' if options['default'] else 'off'}" in told, (name, key)
                checked += 1
    assert checked > 20


def test_chinese_help_pages_say_the_same(comfy: ComfyServer, nodes: dict[str, Any]) -> None:
    assert {folder.parent.name for folder in DOCS.glob("*/zh.md")} == set(nodes)
    for name in nodes:
        status, content = served(comfy, f"/extensions/{PACK_NAME}/docs/{name}/zh.md")
        chinese, english = content.decode(), (DOCS / f"{name}.md").read_text(encoding="utf-8")
        assert status == 200, name
        assert chinese.count("\n## ") == english.count("\n## ") and chinese.count("![") == english.count("![")
        assert re.findall(r"\(img/[^)]+\)", chinese) == re.findall(r"\(img/[^)]+\)", english)
        assert entries(chinese).keys() == entries(english).keys(), name
        for key, text in entries(chinese).items():
            assert CHINESE.search(text), (name, key)
            facts = re.match(r"\*\((.*?)\)\*", entries(english)[key])
            numbers = re.findall(r"[-\d./^]*\d", facts[1] if facts else "")
            assert set(numbers) <= set(re.findall(r"[-\d./^]*\d", text)), (name, key)


def test_pictures_of_help_pages_are_served_and_small(comfy: ComfyServer, nodes: dict[str, Any]) -> None:
    linked = set()
    for name in nodes:
        for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", (DOCS / f"{name}.md").read_text(encoding="utf-8")):
            status, content = served(comfy, f"/extensions/{PACK_NAME}/docs/{picture}")
            assert status == 200 and content.startswith(b"\xff\xd8\xff"), picture
            linked.add(picture)
    assert len(linked) == len(nodes), "a picture of each node"
    assert {f"img/{file.name}" for file in (DOCS / "img").iterdir()} == linked, "no picture is left over"
    assert sum(file.stat().st_size for file in (DOCS / "img").iterdir()) < MEAN_PICTURE * len(nodes)


# -- names and defaults -----------------------------------------------------------------------------


def test_every_node_explains_itself(nodes: dict[str, Any]) -> None:
    for name, info in nodes.items():
        assert info["display_name"].startswith("Helios ") and info["category"].startswith("Helios/"), name
        assert len(info["description"]) > 20, name
        assert info["search_aliases"], name
        silent = [key for key, options in locales.inputs_of(info).items() if not options.get("tooltip")]
        assert silent == [] and all(info["output_tooltips"]), name
    assert len({info["display_name"] for info in nodes.values()}) == len(nodes)


def test_defaults_are_the_released_configuration(nodes: dict[str, Any]) -> None:
    for name, wanted in RELEASED.items():
        inputs = locales.inputs_of(nodes[name])
        assert {key: inputs[key]["default"] for key in wanted} == wanted, name


def test_advanced_inputs_are_those_that_few_change(nodes: dict[str, Any]) -> None:
    found = {
        name: {key for key, options in locales.inputs_of(info).items() if options.get("advanced")}
        for name, info in nodes.items()
    }
    assert {name: keys for name, keys in found.items() if keys} == ADVANCED


# -- languages --------------------------------------------------------------------------------------


def texts(definitions: dict[str, Any], path: str = "") -> dict[str, str]:
    """Every text of nodeDefs by its path."""
    found: dict[str, str] = {}
    for key, value in definitions.items():
        found |= texts(value, f"{path}/{key}") if isinstance(value, dict) else {f"{path}/{key}": value}
    return found


def test_english_names_are_current(comfy: ComfyServer) -> None:
    """Fails after a tooltip is changed: `python -m tools.locales` writes the file again."""
    file = ROOT / "locales" / "en" / "nodeDefs.json"
    assert file.read_text(encoding="utf-8") == locales.as_text(locales.node_definitions(comfy.get("/object_info")))


def test_chinese_names_are_complete(comfy: ComfyServer) -> None:
    languages = comfy.get("/i18n")
    english, chinese = (
        {path: text for path, text in texts(languages[language]["nodeDefs"]).items() if path.startswith("/Helios")}
        for language in ("en", "zh")
    )
    assert chinese.keys() == english.keys()
    untranslated = [
        path
        for path, text in chinese.items()
        if not CHINESE.search(text) and not (path.endswith("/name") and text in LATIN_NAMES)
    ]
    assert untranslated == []
    # Every number of a tooltip survives translation: ranges, released values, sizes.
    for path, text in chinese.items():
        assert set(re.findall(r"\d+\.\d+|\d{2,}", text)) >= set(re.findall(r"\d\.\d{2,}|\d{3,}", english[path])), path


# -- in the browser ---------------------------------------------------------------------------------


def api_graph(name: str) -> dict[str, Any]:
    return json.loads((API_WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def template(title: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{title}.json").read_text(encoding="utf-8"))


def test_help_page_and_blueprint_in_the_browser(comfy: ComfyServer, chromium: str, screenshots: Path) -> None:
    listed = {entry["name"]: key for key, entry in comfy.get("/global_subgraphs").items()
              if entry["info"]["node_pack"] == f"custom_nodes.{PACK_NAME}"}  # fmt: skip
    assert listed.keys() == BLUEPRINTS.keys()
    with browser.open_frontend(comfy.url, chromium) as frontend:
        frontend.load_template(template("Helios Distilled - Text to Video"), "Help")
        frontend.page.mouse.click(*frontend.page.evaluate(FOCUS, "HeliosChunkChain"))
        frontend.page.get_by_test_id("info-button").click()
        help_page = frontend.page.locator(".node-help-content")
        help_page.get_by_role("heading", name="Common mistakes").wait_for()
        picture = help_page.locator("img").first
        frontend.page.wait_for_function("image => image.complete && image.naturalWidth", arg=picture.element_handle())
        frontend.page.screenshot(path=str(screenshots / "help-page.png"))

        for blueprint, workflow in BLUEPRINTS.items():
            frontend.load_template({"nodes": [], "links": [], "version": 0.4}, blueprint)
            frontend.page.evaluate(ADD_BLUEPRINT, listed[blueprint])
            frontend.page.screenshot(path=str(screenshots / f"blueprint-{workflow}.png"))
            assert frontend.problems() == []
            # Both end with the video; saving it is left to the user.
            kept = [entry for entry in api_graph(workflow).values() if entry["class_type"] != "SaveVideo"]
            check_queued(frontend.prompt(), kept)


def check_queued(prompt: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    """Nodes of the same kinds and titles as ``expected``, with the same values."""
    queued = {entry["class_type"] + entry["_meta"]["title"]: entry for entry in prompt.values()}
    assert queued.keys() == {entry["class_type"] + entry["_meta"]["title"] for entry in expected}
    for entry in expected:
        plain = {key: value for key, value in entry["inputs"].items() if not isinstance(value, list)}
        found = queued[entry["class_type"] + entry["_meta"]["title"]]["inputs"]
        assert plain.items() <= found.items()
        assert entry["inputs"].keys() <= found.keys()


# What is read or heard in our widgets, without what a user wrote and what the server says.
SAID = """() => [...document.querySelectorAll('.helios-strip, .helios-panel, .helios-schedule')].flatMap(root => {
  const own = ['name', 'prompt', 'cover', 'actions', 'numbers'].map(name => `.helios-panel-${name}`)
  const found = []
  for (const element of [root, ...root.querySelectorAll('*')]) {
    if (element.closest(['.helios-band', ...own].join())) continue
    const texts = [...element.childNodes].filter(node => node.nodeType === Node.TEXT_NODE).map(node => node.data)
    found.push(...texts, ...['title', 'aria-label', 'placeholder'].map(name => element.getAttribute(name) ?? ''))
  }
  return found.map(text => text.trim()).filter(text => text)
})"""
SAME_IN_BOTH = {"Helios", "ComfyUI", "fps", "KiB", "MiB", "GiB", "Run", "positive", "Enter"}


def test_nothing_is_told_in_english_in_a_chinese_browser(comfy: ComfyServer, chromium: str, screenshots: Path) -> None:
    with browser.open_frontend(comfy.url, chromium, **{"Comfy.Locale": "zh"}) as frontend:
        strip = Strip(frontend, "chinese", screenshots)
        strip.open(FILM, num_chunks=4)
        strip.page.evaluate(CONNECT_SCHEDULE, "0: 海\n2: 风暴")
        strip.page.locator(".helios-takes-tab-button").click()
        heard = strip.page.evaluate(SAID)
        take = long_take(strip, 44, 6)
        take["progress"] = {"film_seconds": 8.25, "fps": 3.5, "seconds_left": 90}
        strip.page.evaluate(BEGIN, take)
        for state in ({"state": "sampling", "stage": 1, "step": 2, "total": 4}, {"state": "decoding"}):
            chunk = {"chunk": 6, "reused": False, "thumbnail": False, "video": False, **state}
            strip.page.evaluate(CHANGE, [take["id"], chunk, take["progress"]])
            strip.page.wait_for_timeout(200)
            heard += strip.page.evaluate(SAID)
        strip.page.evaluate(BEGIN, {**take, "status": "interrupted", "resumable": True})
        strip.until("interrupted")
        heard += strip.page.evaluate(SAID)
        strip.screenshot("all")
        assert len(set(heard)) > 40 and any("阶段 2，第 2/4 步" in text for text in heard), heard
        english = {text for text in heard if set(re.findall(r"[A-Za-z]{3,}", text)) - SAME_IN_BOTH}
        assert english == set()

        graph = {key: {**entry, "_meta": {}} for key, entry in api_graph("helios_distilled_t2v").items()}
        frontend.load_api(graph, "中文")
        frontend.page.evaluate(FOCUS, "HeliosChunkChain")
        shown = frontend.page.evaluate(SHOWN, "HeliosChunkChain")
        frontend.page.screenshot(path=str(screenshots / "chinese.png"))
        assert shown[:4] == ["Helios 分块链", "模型", "正面条件", "负面条件"]
        assert frontend.errors == []
