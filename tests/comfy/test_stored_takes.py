"""Takes of an earlier process: read back after a kill, continued, deleted."""

import json
import urllib.error
import urllib.request
from pathlib import Path

from helios_comfy_graphs import film
from helios_tools import frontend as browser
from helios_tools.templates import TEMPLATES

from helios_setup.paths import API_WORKFLOWS, ROOT
from helios_setup.server import OPENER

ARGUMENTS = ("--cpu", "--force-fp32", "--fp32-text-enc")
CHUNKS = 6
TINY = "helios-tiny-distilled"
SECONDS = 120_000
VIDEO = "document.querySelector('dialog .helios-player-video:not([hidden])')"


def ask(server, path: str, method: str = "GET") -> tuple[int, bytes]:
    try:
        with OPENER.open(urllib.request.Request(server.url + path, method=method), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def is_finished(event, chunk: int) -> bool:
    return (
        event.type == "helios.take"
        and event.data["kind"] == "chunk"
        and (event.data["chunk"]["chunk"], event.data["chunk"]["state"]) == (chunk, "finished")
    )


def killed_take(server, graph, workflow) -> str:
    """The id of a take that a page queued and whose process was killed after its second chunk."""
    extra = {"extra_pnginfo": {"workflow": workflow}}
    status, _ = server.post_raw("/prompt", {"prompt": graph, "client_id": server.client_id, "extra_data": extra})
    assert status == 200
    found = server.wait_for_event(lambda event: is_finished(event, 1)).data["id"]
    server.kill()
    return found


def template() -> tuple[dict, dict]:
    """A film's graph on helios-tiny as a page queues it, and its workflow."""
    name = "Helios Distilled - Long Video"
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    (api,) = [item.api for item in TEMPLATES if item.title == name]
    graph = json.loads((API_WORKFLOWS / f"{api}.json").read_text(encoding="utf-8"))
    small = {"width": 64, "height": 64, "steps": "1, 1, 1"}
    for item in graph.values():
        changes = small | {"num_chunks": CHUNKS, "filename_prefix": "killed", "amplify_first_chunk": False}
        for name, value in changes.items():
            if name in item["inputs"]:
                item["inputs"][name] = value
        if item["class_type"] == "HeliosLoadModel":
            item["inputs"]["model"] = TINY
    return graph, workflow


def test_killed_take_is_read_back_and_goes_on(new_comfy, chromium, screenshots):
    graph, workflow = template()
    take = killed_take(new_comfy(ARGUMENTS), graph, workflow)
    server = new_comfy(ARGUMENTS)
    store = Path(server.log_file.parent / "output" / "helios_store")
    (found,) = server.get("/helios/takes")["takes"]
    done = [chunk["chunk"] for chunk in found["chunks"]]
    assert (found["id"], found["status"], found["workflow"]) == (take, "interrupted", workflow["id"])
    assert (found["num_chunks"], found["resumable"], found["progress"]["fps"]) == (CHUNKS, True, None)
    assert done == list(range(len(done))) and 2 <= len(done) < CHUNKS
    assert found["rows"][0][1].startswith("A small red sailing boat")
    assert ask(server, f"/helios/takes/{take}/1/thumbnail")[1].startswith(b"RIFF")
    assert b"ftyp" in ask(server, f"/helios/takes/{take}/0/video")[1][:16]
    playlist = ask(server, f"/helios/takes/{take}/stream.m3u8")[1].decode()
    encoded = sum(chunk["video"] for chunk in found["chunks"])  # the last one may not have been yet
    assert (playlist.count(".m4s"), playlist.endswith("#EXT-X-ENDLIST\n")) == (encoded, True)
    (listed,) = server.get("/helios/library")["takes"]
    assert (listed["finished"], listed["cover"], "chunks" in listed) == (len(done), 0, False)
    assert 0 < listed["bytes"] <= sum(file.stat().st_size for file in store.iterdir() if file.is_file())
    assert json.loads(ask(server, f"/helios/takes/{take}")[1])["take"] == found

    with browser.open_frontend(server.url, chromium, **{"Comfy.VueNodes.Enabled": True}) as frontend:
        page = frontend.page
        page.locator(".helios-takes-tab-button").click()
        item = page.locator(f".helios-panel-item[data-take='{take}']")
        assert f"{len(done)} of {CHUNKS} chunks, stopped" in item.inner_text()
        page.wait_for_function("() => document.querySelector('.helios-panel-cover img')?.naturalWidth === 160")
        # Its workflow comes with its strip, which offers to go on.
        item.get_by_text("Workflow").click()
        page.locator(".helios-strip[data-status=interrupted]").wait_for()
        assert page.locator(f".helios-strip[data-take='{take}'] .helios-cell[data-state=finished]").count() == len(done)
        page.screenshot(path=str(screenshots / "takes-stopped.png"))
        page.locator(".helios-strip [data-action=resume]").click()
        page.locator(".helios-strip[data-status=finished]").wait_for(timeout=SECONDS)
        (again,) = server.get("/helios/takes")["takes"]  # the same name: the store remembers the newer take
        assert [chunk["reused"] for chunk in again["chunks"]] == [True] * len(done) + [False] * (CHUNKS - len(done))
        assert again["film"]["filename"].startswith("killed_") and again["status"] == "finished"
        item = page.locator(f".helios-panel-item[data-take='{again['id']}']")
        item.get_by_text(f"{CHUNKS} of {CHUNKS} chunks, finished").wait_for()
        page.screenshot(path=str(screenshots / "takes-finished.png"))
        item.get_by_text("Play", exact=True).click()
        page.wait_for_function(f"() => {VIDEO}?.src.includes('/view?') && {VIDEO}.currentTime > 0")
        page.keyboard.press("Escape")
        delete = item.locator("[data-action=remove]")
        delete.click()
        delete.get_by_text("Free ").click()
        page.get_by_text("No takes yet.").wait_for()
        assert frontend.errors == []
    assert not [file for file in store.iterdir() if file.is_file()]
    assert server.get("/helios/takes")["takes"] == server.get("/helios/library")["takes"] == []
    assert (store.parent / again["film"]["filename"]).exists(), "the film stays"
    assert ask(server, f"/helios/takes/{again['id']}", "DELETE") == (204, b"")


def test_running_take_is_not_deleted(comfy):
    prompt_id = comfy.queue(film("kept", 400, seed=121))
    take = comfy.wait_for_event(
        lambda e: is_finished(e, 0) and any(t["id"] == e.data["id"] for t in comfy.get("/helios/takes")["takes"]
                                            if t["prompt_id"] == prompt_id)
    ).data["id"]  # fmt: skip
    status, answer = ask(comfy, f"/helios/takes/{take}", "DELETE")
    assert status == 409 and "is being rendered; stop it first." in json.loads(answer)["error"]
    comfy.interrupt()
    comfy.wait(prompt_id)
    assert ask(comfy, f"/helios/takes/{take}", "DELETE")[0] == 200


def test_other_addresses_are_refused(comfy):
    for path in ("/helios/takes/x", "/helios/takes/..%2F..%2Fa", "/helios/takes/x/queued"):
        for method in ("GET", *(["DELETE"] if "queued" not in path else [])):
            status, answer = ask(comfy, path, method)
            assert status == 400 and "is no take's id" in json.loads(answer)["error"]
    assert ask(comfy, "/helios/takes/" + "0" * 32)[0] == ask(comfy, f"/helios/takes/{'0' * 32}/queued")[0] == 204
