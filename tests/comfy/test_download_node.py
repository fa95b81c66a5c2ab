"""Helios Download Model, and the button of Helios Load Model, in a real ComfyUI with a hub on loopback."""

import importlib.util
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from helios_comfy_one_chunk import graph, latents, refused
from helios_tools import frontend as browser

from helios_core.commands.embedded import embedded
from helios_setup.paths import ROOT

TEMPLATE = "Helios Distilled - Text to Video"
HELD = "text_encoder/model.safetensors"


def loopback_hub(folder):
    """The hub of the headless download tests; test folders are not packages, so it cannot be imported by name."""
    file = Path(__file__).parent.parent / "core" / "test_download.py"
    spec = importlib.util.spec_from_file_location("helios_download_tests", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Hub(folder)


@pytest.fixture
def hub_environment(monkeypatch, tmp_path):
    """`hub_environment(folder)`: a hub over a folder, which servers started afterwards ask."""
    started = []

    def start(folder):
        hub = loopback_hub(folder)
        started.append(hub)
        threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
        for name in [name for name in os.environ if name.startswith("HF_")]:
            monkeypatch.delenv(name)
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}.items():
            monkeypatch.setenv(name, value)
        return hub

    yield start
    for hub in started:
        hub.shutdown()
        hub.server_close()


def test_download_node_installs_a_model_only_when_run(new_comfy, tiny_folder, hub_environment):
    hub = hub_environment(tiny_folder("distilled"))
    server = new_comfy(("--cpu", "--force-fp32", "--fp32-text-enc"))
    assert "Helios-Distilled is not installed" in refused(server, graph("Helios-Distilled"))
    assert not hub.requests

    node = {"class_type": "HeliosDownloadModel", "inputs": {"variant": "distilled"}}
    hub.good_token = "hf_right"
    assert "the hub refused the token" in refused(server, {"get": node})
    hub.good_token = None
    server.run({"get": node})
    states = [event.data["nodes"].get("get", {}) for event in server.events() if event.type == "progress_state"]
    assert any(state.get("max", 0) > 1e6 and state["value"] == state["max"] for state in states), states[-3:]
    assert torch.equal(latents(server, graph("Helios-Distilled")), latents(server, graph()))


def hold(hub, gate: threading.Event) -> None:
    """Lets the hub wait at one file, until the gate is open."""
    handler = hub.RequestHandlerClass

    class Held(handler):
        def send_file(self, file, name):
            if name == HELD and self.command == "GET":
                gate.wait(5)
            return super().send_file(file, name)

    hub.RequestHandlerClass = Held


def test_load_model_downloads_at_the_press_of_its_button(
    new_comfy, chromium, tiny_folder, hub_environment, screenshots
):
    """What the node says before, meanwhile and after; stopped once, and failed once, on the way."""
    hub, gate = hub_environment(tiny_folder("distilled")), threading.Event()
    hold(hub, gate)
    server = new_comfy(("--cpu", "--force-fp32", "--fp32-text-enc"))
    workflow = json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text(encoding="utf-8"))
    with browser.open_frontend(server.url, chromium, **{"Comfy.VueNodes.Enabled": True}) as frontend:
        frontend.load_template(workflow, TEMPLATE)
        panel = frontend.page.locator(".helios-model")
        press = panel.get_by_role("button").click

        def says(text: str) -> None:
            panel.get_by_text(text).wait_for(timeout=60_000)

        own = embedded("distilled")
        says(f"Uses {own.name}, made for {own.size[0]} x {own.size[1]}.")
        says("It knows a small world" if own.folder else "Its weights are random")
        says("Helios-Distilled is not installed (80.5 GB).")
        assert not hub.requests, "nothing is asked before the button is pressed"
        hub.good_token = "hf_right"
        press()
        says("the hub refused the token")
        hub.good_token = None
        press()
        says("MB of")
        panel.locator("progress").wait_for()
        frontend.page.screenshot(path=str(screenshots / "load-model-download.png"))
        with frontend.page.expect_response("**/helios/models/distilled/stop"):
            press()
        gate.set()
        says("finished files are kept")
        frontend.start()
        frontend.load_template(workflow, TEMPLATE)
        says("finished files are kept")
        before = hub.downloaded()
        press()
        says("Uses Helios-Distilled, made for 640 x 384.")
        assert not panel.get_by_role("button").is_visible() and not panel.locator("progress").is_visible()
        assert not (hub.downloaded() - before).keys() & {"model_index.json", "scheduler/scheduler_config.json"}
        assert frontend.errors == []
    assert server.get("/helios/models")["models"]["distilled"]["name"] == "Helios-Distilled"
