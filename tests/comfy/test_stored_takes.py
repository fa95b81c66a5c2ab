"""Takes of an earlier process: read back after a kill, continued, deleted."""

import json
import urllib.error
import urllib.request
from pathlib import Path

from helios_comfy_graphs import film

from helios_setup.server import OPENER, failure

ARGUMENTS = ("--cpu", "--force-fp32", "--fp32-text-enc")
CHUNKS = 30


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


def killed_take(server, graph) -> str:
    """The id of a take whose process was killed after its second chunk."""
    server.queue(graph)
    found = server.wait_for_event(lambda event: is_finished(event, 1)).data["id"]
    server.kill()
    return found


def test_killed_take_is_read_back_goes_on_and_is_deleted(new_comfy):
    take = killed_take(new_comfy(ARGUMENTS), film("killed", CHUNKS, seed=120))
    server = new_comfy(ARGUMENTS)
    store = Path(server.log_file.parent / "output" / "helios_store")
    (found,) = server.get("/helios/takes")["takes"]
    done = [chunk["chunk"] for chunk in found["chunks"]]
    assert (found["id"], found["status"], found["num_chunks"], found["resumable"]) == (
        take,
        "interrupted",
        CHUNKS,
        True,
    )
    assert (found["rows"], found["node"], found["progress"]["fps"]) == ([[0, "a boat"]], "render", None)
    assert done == list(range(len(done))) and 2 <= len(done) < CHUNKS
    assert ask(server, f"/helios/takes/{take}/1/thumbnail")[1].startswith(b"RIFF")
    assert b"ftyp" in ask(server, f"/helios/takes/{take}/0/video")[1][:16]
    (listed,) = server.get("/helios/library")["takes"]
    assert (listed["finished"], listed["cover"], "chunks" in listed) == (len(done), 0, False)
    assert 0 < listed["bytes"] <= sum(file.stat().st_size for file in store.iterdir() if file.is_file())
    assert json.loads(ask(server, f"/helios/takes/{take}")[1])["take"] == found

    # What was queued, shortened so that it ends: it goes on at the first missing chunk.
    graph = server.get(f"/helios/takes/{take}/queued")["prompt"]
    graph["render"]["inputs"]["num_chunks"] = len(done) + 1
    assert failure(server.wait(server.queue(graph))) is None
    (again,) = server.get("/helios/takes")["takes"]  # the same name: the store remembers the newer take
    assert [chunk["reused"] for chunk in again["chunks"]] == [True] * len(done) + [False]
    assert again["film"]["filename"].startswith("killed_") and again["status"] == "finished"

    status, answer = ask(server, f"/helios/takes/{again['id']}", "DELETE")
    assert status == 200 and json.loads(answer)["freed"] >= listed["bytes"]
    assert not [file for file in store.iterdir() if file.is_file()]
    assert server.get("/helios/takes")["takes"] == server.get("/helios/library")["takes"] == []
    assert (store.parent / again["film"]["filename"]).exists(), "the film stays"
    assert ask(server, f"/helios/takes/{again['id']}", "DELETE") == (204, b"")


def test_running_take_is_not_deleted(comfy):
    prompt_id = comfy.queue(film("kept", 40, seed=121))
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
