"""Helios Live Video in a real ComfyUI: directed over HTTP, made again by Render Video, killed and gone on with."""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helios_comfy_graphs import film, live, node

from helios_core.take.prompts import schedule_from_text
from helios_core.take.store import FOLDER_NAME
from helios_core.video.reader import read_video
from helios_setup.server import failure, output_files

FRAMES = 33
ARGUMENTS = ("--cpu", "--force-fp32", "--fp32-text-enc")


def request(comfy: Any, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    asked = urllib.request.Request(comfy.url + path, data, {"Content-Type": "application/json", **headers})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=60) as response:
            return response.status, json.loads(response.read() or b"{}")
    except urllib.error.HTTPError as error:
        content = error.read()
        return error.code, json.loads(content) if content.startswith(b"{") else {}


class Shoot:
    """A live film that is being made."""

    def __init__(self, comfy: Any, graph: dict[str, dict[str, Any]]):
        self.comfy = comfy
        self.prompt = comfy.queue(graph)
        started = comfy.wait_for_event(lambda event: self.is_of(event, "start"), timeout=240)
        self.id = started.data["id"]

    def is_of(self, event: Any, kind: str) -> bool:
        if event.type != "helios.take" or event.data["kind"] != kind:
            return False
        return event.data["take"]["prompt_id"] == self.prompt if kind == "start" else event.data["id"] == self.id

    def path(self) -> str:
        return f"/helios/takes/{self.id}/direct"

    def state(self) -> dict[str, Any]:
        return self.comfy.get(self.path())

    def direct(self, do: str, **fields: Any) -> dict[str, Any]:
        status, answer = request(self.comfy, self.path(), {"version": 1, "do": do, **fields})
        assert status == 200, answer
        return answer

    def refused(self, do: Any, status: int = 400, **fields: Any) -> str:
        found, answer = request(self.comfy, self.path(), {"version": 1, "do": do, **fields})
        assert found == status, answer
        return answer["error"]

    def until(self, chunk: int) -> None:
        """Waits until a chunk is finished; it may be so already."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            take = self.comfy.get(f"/helios/takes/{self.id}")["take"]
            if any(entry["chunk"] == chunk and entry["state"] == "finished" for entry in take["chunks"]):
                return
            time.sleep(0.05)
        raise AssertionError(f"chunk {chunk} is not finished")

    def end(self) -> dict[str, Any]:
        return self.comfy.wait(self.prompt)


def output(comfy: Any) -> Path:
    return comfy.log_file.parent / "output"


def manifest(comfy: Any, prefix: str) -> dict[str, Any]:
    (file,) = (output(comfy) / FOLDER_NAME / "takes").glob(f"{prefix}-live-*.json")
    return json.loads(file.read_text(encoding="utf-8"))


def texts(entry: dict[str, Any]) -> tuple[str, str]:
    """The schedule and the seed changes that the node gave on."""
    return tuple(entry["outputs"][name]["text"][0] for name in ("show", "seeds"))  # type: ignore[return-value]


def rendered(comfy: Any, prefix: str, schedule: str, changes: str, chunks: int) -> torch.Tensor:
    """The frames of the film that Render Video makes of the texts; none of its chunks is sampled."""
    graph = film(prefix, chunks=chunks, seed_changes=changes)
    graph["positive"] = node("HeliosPromptScheduleText", clip=["clip", 0], text=schedule, blend=3)
    before = len(list((output(comfy) / FOLDER_NAME).glob("*.chunk.safetensors")))
    (file,) = output_files(comfy.run(graph), output(comfy))
    assert len(list((output(comfy) / FOLDER_NAME).glob("*.chunk.safetensors"))) == before, "from the store"
    return read_video(file)


def test_a_directed_film_and_the_same_from_its_texts(comfy):
    shoot = Shoot(comfy, live("directed", "0: a boat\n90: the end"))
    shoot.until(0)
    shoot.direct("pause")
    state = shoot.state()
    assert state["version"] == 1 and state["live"] and state["paused"]
    first = state["next_chunk"]
    answer = shoot.direct("prompt", text="a red  storm", blend=2)
    assert (answer["version"], answer["direction"], answer["chunk"]) == (1, 2, first)
    assert answer["second"] == pytest.approx(first * FRAMES / 24, abs=0.001)
    assert answer["state"]["rows"][1] == {"chunk": first, "text": "a red storm", "blend": 2}
    shoot.direct("prompt", text="never", chunk=first + 1)
    assert [entry["text"] for entry in shoot.state()["pending"]] == ["a red storm", "never"]
    assert shoot.direct("undo")["chunk"] == first + 1
    shoot.direct("continue")
    shoot.until(first + 1)
    rolled = shoot.direct("roll", chunk=first)
    assert rolled["chunk"] == first and rolled["state"]["next_chunk"] <= first + 1
    shoot.until(first + 2)
    shoot.direct("stop")
    entry = shoot.end()
    assert failure(entry) is None
    (file,) = output_files(entry, output(comfy))
    frames, (schedule, changes) = read_video(file), texts(entry)
    chunks = len(frames) // FRAMES
    assert schedule == f"0: a boat\n{first}~2: a red storm\n90~0: the end"
    assert changes.startswith(f"{first}: ") and chunks >= first + 3

    kept = manifest(comfy, "directed")
    assert kept["status"] == "finished" and len(kept["chunks"]) == chunks
    said = [direction["do"] for direction in kept["directions"]]
    assert said == ["pause", "prompt", "prompt", "undo", "continue", "roll", "stop"]
    assert torch.equal(rendered(comfy, "directed_again", schedule, changes, chunks), frames)

    kinds = [event.data["kind"] for event in comfy.events(kind="helios.take") if event.data["id"] == shoot.id]
    assert kinds.count("directed") >= len(said) + chunks
    assert shoot.state()["live"] is False
    assert "has ended" in shoot.refused("pause", 409)


def test_it_goes_on_with_all_directions_when_it_is_queued_again(comfy):
    graph = live("again")
    shoot = Shoot(comfy, graph)
    shoot.direct("pause")
    chunk = shoot.state()["next_chunk"] + 1
    assert shoot.direct("prompt", text="rain", chunk=chunk)["chunk"] == chunk
    shoot.direct("continue")
    shoot.until(chunk)
    shoot.direct("stop")
    entry = shoot.end()
    directed = f"0: a boat\n{chunk}~0: rain"
    assert texts(entry)[0] == directed
    count = len(manifest(comfy, "again")["chunks"])
    graph["live"]["inputs"]["max_chunks"] = count + 1
    longer = comfy.run(graph)
    assert texts(longer)[0] == directed
    first, second = (read_video(output_files(found, output(comfy))[0]) for found in (entry, longer))
    assert len(second) == (count + 1) * FRAMES and torch.equal(second[: count * FRAMES], first)
    assert [chunk["reused"] for chunk in manifest(comfy, "again")["chunks"]] == [True] * count + [False]
    graph["live"]["inputs"]["resume"] = False
    assert texts(comfy.run(graph))[0] == "0: a boat"


def random_direction(rng: random.Random, text: str) -> dict[str, Any]:
    """Something to say to a film of which a few chunks are made; some of it cannot be followed."""
    do = rng.choice(["prompt", "prompt", "prompt", "undo", "roll", "pause", "continue"])
    fields: dict[str, Any] = {"version": 1, "do": do}
    if do == "prompt":
        fields |= {"text": text, "blend": rng.randrange(3)}
        fields |= rng.choice([{}, {"chunk": rng.randrange(12)}])
    if do == "roll":
        fields["chunk"] = rng.randrange(5)
    return fields


@pytest.mark.parametrize("count", [12, pytest.param(500, marks=pytest.mark.slow)])
def test_two_clients_direct_one_film_at_once(comfy, count):
    prefix = f"clients{count}"
    shoot = Shoot(comfy, live(prefix))
    shoot.until(0)

    def client(number: int) -> dict[int, tuple[dict[str, Any], int]]:
        """What was settled: the number that it got, what was said, and the chunk from which it holds."""
        rng, settled = random.Random(number), {}
        for index in range(count):
            body = random_direction(rng, f"{number} says {index}")
            status, answer = request(comfy, shoot.path(), body)
            assert status == 200 or (status == 400 and answer["error"]), answer
            if status == 200:
                settled[answer["direction"]] = body, answer["chunk"]
            time.sleep(rng.random() / 10)
        assert list(settled) == sorted(settled), "each client is heard in its own order"
        return settled

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(client, (1, 2))
    shoot.direct("continue")
    shoot.direct("stop")
    entry = shoot.end()
    assert failure(entry) is None
    # Every answer is one entry of the manifest, and the schedule is what the answers say.
    assert not set(one) & set(other)
    kept, said = manifest(comfy, prefix)["directions"][:-2], dict(sorted((one | other).items()))
    assert [direction["number"] for direction in kept] == list(said) == list(range(1, len(said) + 1))
    undone, rows = {direction.get("undoes") for direction in kept}, {0: "a boat"}
    for direction, (body, chunk) in zip(kept, said.values(), strict=True):
        assert (direction["do"], direction.get("text")) == (body["do"], body.get("text"))
        if body["do"] == "prompt" and direction["number"] not in undone:
            rows[chunk] = body["text"]
    schedule, changes = texts(entry)
    assert dict(schedule_from_text(schedule, 0).rows) == rows
    frames = read_video(output_files(entry, output(comfy))[0])
    again = rendered(comfy, f"{prefix}_again", schedule, changes, len(frames) // FRAMES)
    assert torch.equal(again, frames)


def test_a_picture_becomes_the_anchor(comfy):
    shoot = Shoot(comfy, live("anchor"))
    shoot.until(0)
    shoot.direct("pause")
    answer = shoot.direct("anchor", image="example.png")
    (waiting,) = answer["state"]["pending"]
    assert waiting == {"direction": 2, "do": "anchor", "chunk": answer["chunk"]}
    shoot.direct("continue")
    shoot.until(answer["chunk"])
    shoot.direct("stop")
    entry = shoot.end()
    frames = read_video(output_files(entry, output(comfy))[0])
    # The same by nodes: a film, another anchor, and the film that goes on from there.
    graph = film("anchored", chunks=answer["chunk"])
    graph["image"] = node("LoadImage", image="example.png")
    graph["other"] = node(
        "HeliosAnchorHistory", history=["render", 1], strength=1.0, image=["image", 0], vae=["vae", 0]
    )
    rest = len(frames) // FRAMES - answer["chunk"]
    inputs = graph["render"]["inputs"] | {"history": ["other", 0], "num_chunks": rest, "filename_prefix": "rest"}
    graph["rest"] = node("HeliosRenderVideo", **inputs)
    files = output_files(comfy.run(graph), output(comfy))
    (last,) = [file for file in files if file.name.startswith("rest")]
    assert torch.equal(read_video(last), frames[answer["chunk"] * FRAMES :])


def test_what_cannot_be_followed_is_told(comfy):
    shoot = Shoot(comfy, live("refused"))
    shoot.until(1)
    shoot.direct("pause")
    shoot.until(shoot.state()["next_chunk"] - 1)
    before = shoot.state()
    assert "has begun already" in shoot.refused("prompt", text="rain", chunk=0)
    assert "has 1000000 letters" in shoot.refused("prompt", text="x" * 1_000_000)
    assert "is empty" in shoot.refused("prompt", text=" ")
    assert "cannot be rolled again" in shoot.refused("roll", chunk=50)
    assert "nothing to undo" in shoot.refused("undo")
    assert "is no direction" in shoot.refused(["pause"])
    for image in ("none.png", "../comfyui.log", "/etc/passwd", "a\0b", "example.png [output]"):
        assert "image=" in shoot.refused("anchor", image=image)
    assert request(comfy, shoot.path(), b"\xff{")[0] == 400
    assert request(comfy, shoot.path(), b"[" * 100_000)[0] == 400
    assert request(comfy, shoot.path(), {"version": 2, "do": "pause"})[0] == 400
    unknown = f"/helios/takes/{'0' * 32}/direct"
    assert request(comfy, unknown, {"version": 1, "do": "stop"})[0] == 404
    assert request(comfy, "/helios/takes/nothing/direct", {"version": 1, "do": "stop"})[0] == 400
    # As core refuses what another page sends.
    evil = {"Origin": "http://evil.example", "Host": "127.0.0.1"}
    assert request(comfy, shoot.path(), {"version": 1, "do": "stop"}, **evil)[0] == 403
    assert request(comfy, shoot.path(), {"version": 1, "do": "stop"}, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert shoot.state() == before
    comfy.interrupt()
    assert shoot.end()["status"]["status_str"] == "error"
    (file,) = output(comfy).glob("refused_0*.mp4")
    assert len(read_video(file)) == before["next_chunk"] * FRAMES, "a cancelled film is a finished file"
    assert manifest(comfy, "refused")["status"] == "interrupted"
    assert not list(output(comfy).glob("refused*.partial.mp4"))


def test_a_wrong_beginning_is_refused_before_anything_loads(comfy):
    for changes, sentence in (({"text": "3: a boat"}, "first row needs 0"), ({"seed_changes": "x"}, "not a chunk")):
        status, answer = comfy.post_raw("/prompt", {"prompt": live("wrong", **changes)})
        assert status == 400 and sentence in json.dumps(answer)


@pytest.mark.slow
def test_a_killed_film_goes_on_with_all_directions(new_comfy):
    server = new_comfy(ARGUMENTS)
    graph = live("killed")
    shoot = Shoot(server, graph)
    shoot.until(1)
    at = shoot.direct("prompt", text="rain")["chunk"]
    shoot.until(at + 1)
    rolled = shoot.direct("roll", chunk=at + 1)
    server.kill()
    made = {path.name for path in (output(server) / FOLDER_NAME).glob("*.chunk.safetensors")}
    server = new_comfy(ARGUMENTS)
    shoot = Shoot(server, graph)
    state = shoot.state()
    assert [row["text"] for row in state["rows"]] == ["a boat", "rain"]
    assert state["seed_changes"] == rolled["state"]["seed_changes"]
    assert shoot.direct("prompt", text="snow")["chunk"] >= at + 1
    shoot.until(at + 3)
    shoot.direct("stop")
    entry = shoot.end()
    kept = manifest(server, "killed")
    assert all(chunk["reused"] for chunk in kept["chunks"][: at + 1])
    assert made <= {path.name for path in (output(server) / FOLDER_NAME).glob("*.chunk.safetensors")}
    frames = read_video(output_files(entry, output(server))[0])
    assert torch.equal(rendered(server, "killed_again", *texts(entry), len(frames) // FRAMES), frames)
