"""Helios Download Model in a real ComfyUI, with a hub on loopback."""

import importlib.util
import os
import threading
from pathlib import Path

import torch
from helios_comfy_one_chunk import graph, latents, refused


def loopback_hub(folder):
    """The hub of the headless download tests; test folders are not packages, so it cannot be imported by name."""
    file = Path(__file__).parent.parent / "core" / "test_download.py"
    spec = importlib.util.spec_from_file_location("helios_download_tests", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Hub(folder)


def test_download_node_installs_a_model_only_when_run(new_comfy, tiny_folder, monkeypatch, tmp_path):
    hub = loopback_hub(tiny_folder("distilled"))
    threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}.items():
        monkeypatch.setenv(name, value)
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
    hub.shutdown()
    hub.server_close()
