"""What a running take tells: typed events, their GET routes, progress text and previews, and seed changes."""

import asyncio
import io
import itertools
import json
import struct
import threading
import urllib.error
import urllib.request
from pathlib import Path

import aiohttp
import av
import helios_comfy_graphs as graphs
import pytest
import torch
from helios_comfy_graphs import SIZE, node
from PIL import Image
from safetensors.torch import load_file

from helios_setup.errors import PromptRejectedError
from helios_setup.server import OPENER, failure

FRAMES, STEPS = 33, 3
TEXT_MESSAGE = 3
CHAIN_INPUTS = ("model", "positive", "negative", "cfg", "sampler", "history", "seed", "num_chunks")


def film(prefix, chunks=3, **changes):
    """The small render with two prompts."""
    graph = graphs.film(prefix, chunks, quality=30, **changes)
    graph["positive"] = node("HeliosPromptScheduleText", clip=["clip", 0], text="0: a boat / 2: a storm", blend=0)
    return graph


def chain(chunks=3, **changes):
    graph = film("unused", chunks)
    inputs = {name: value for name, value in graph.pop("render")["inputs"].items() if name in CHAIN_INPUTS}
    graph["chain"] = node("HeliosChunkChain", **inputs | changes)
    graph["save"] = node("SaveLatent", samples=["chain", 0], filename_prefix="latents/chain")
    return graph


def take_events(comfy, prompt_id):
    """The helios.take events of one prompt, in order."""
    started = [e.data for e in comfy.events(kind="helios.take") if e.data["kind"] == "start"]
    ids = {event["id"] for event in started if event["take"]["prompt_id"] == prompt_id}
    return [e.data for e in comfy.events(kind="helios.take") if e.data["id"] in ids]


def run(comfy, graph):
    """The events of a prompt that succeeds, and its take's id."""
    prompt_id = comfy.queue(graph)
    assert failure(comfy.wait(prompt_id)) is None
    events = take_events(comfy, prompt_id)
    return events, events[0]["id"]


def get(comfy, path, **headers):
    try:
        with OPENER.open(urllib.request.Request(comfy.url + path, headers=headers), timeout=30) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get_content_type(), error.read()


def state(comfy, take):
    (found,) = [known for known in comfy.get("/helios/takes")["takes"] if known["id"] == take]
    return found


def pictures(data):
    image = Image.open(io.BytesIO(data))
    assert image.format == "WEBP"
    return image.n_frames, image.size


def frames(data):
    with av.open(io.BytesIO(data)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_events_of_a_render(comfy):
    events, take = run(comfy, film("events", seed=101))
    assert {event["version"] for event in events} == {1}
    first, last = events[0], events[-1]
    assert [event["kind"] for event in events] == ["start", *["chunk"] * (len(events) - 2), "end"]
    started = first["take"]
    assert (started["node"], started["workflow"], started["status"]) == ("render", None, "running")
    assert (started["first_chunk"], started["num_chunks"], started["chunk_frames"]) == (0, 3, FRAMES)
    assert (started["film_fps"], started["width"], started["height"], started["seed"]) == (24.0, SIZE, SIZE, 101)
    assert started["rows"] == [[0, "a boat"], [2, "a storm"]]
    assert started["chunks"] == []
    for chunk in range(3):
        told = [event["chunk"] for event in events if event.get("chunk", {}).get("chunk") == chunk]
        states = [cell["state"] for cell in told]
        assert sorted(set(states), key=states.index) == ["sampling", "decoding", "finished"]
        assert (told[0]["stage"], told[0]["step"], told[0]["total"]) == (0, 1, STEPS)
        assert told[-1] == {
            "chunk": chunk, "state": "finished", "stage": None, "step": None, "total": None,
            "reused": False, "thumbnail": True, "video": True, "anti_drift": False,
        }  # fmt: skip
    assert (last["status"], last["message"]) == ("finished", "")
    assert last["progress"]["film_seconds"] == pytest.approx(3 * FRAMES / 24, abs=1e-3)
    assert last["progress"]["fps"] > 0 and last["progress"]["seconds_left"] == 0
    # The state that a page asks for holds what the events told.
    assert state(comfy, take)["chunks"] == [
        next(e["chunk"] for e in reversed(events) if e.get("chunk", {}).get("chunk") == i) for i in range(3)
    ]


def test_reused_chunks_are_told(comfy):
    run(comfy, film("reuse", seed=102))
    events, take = run(comfy, film("reuse", chunks=4, seed=102))
    assert [(cell["reused"], cell["state"]) for cell in state(comfy, take)["chunks"]] == [
        *[(True, "finished")] * 3, (False, "finished"),
    ]  # fmt: skip
    assert not [e for e in events if e.get("chunk", {}).get("state") == "sampling" and e["chunk"]["chunk"] < 3]


def test_parts_of_a_render_are_served(comfy):
    _, take = run(comfy, film("parts", chunks=2, seed=103))
    for chunk in range(2):
        status, kind, data = get(comfy, f"/helios/takes/{take}/{chunk}/thumbnail")
        assert (status, kind, pictures(data)) == (200, "image/webp", (9, (160, 160)))
        status, kind, data = get(comfy, f"/helios/takes/{take}/{chunk}/video")
        assert (status, kind, frames(data)) == (200, "video/mp4", FRAMES)


def test_parts_of_a_chain_are_served(comfy):
    events, take = run(comfy, chain(2, seed=104))
    assert [event["chunk"]["state"] for event in events if event["kind"] == "chunk"][-1] == "finished"
    status, kind, data = get(comfy, f"/helios/takes/{take}/1/thumbnail")
    assert (status, kind, pictures(data)) == (200, "image/webp", (9, (160, 160)))
    assert get(comfy, f"/helios/takes/{take}/1/video")[0] == 204
    assert [cell["video"] for cell in state(comfy, take)["chunks"]] == [False, False]


SEEDS = itertools.count(1050)


@pytest.fixture
def short(comfy):
    """The id of a take of one chunk, new for every test: pages keep the last 16, and core runs no graph twice."""
    return run(comfy, film("short", chunks=1, seed=next(SEEDS)))[1]


@pytest.mark.parametrize("path", ["{take}/9/video", "{take}/9/thumbnail", "0123456789abcdef" * 2 + "/0/video"])
def test_what_is_not_there_has_no_content(comfy, short, path):
    assert get(comfy, "/helios/takes/" + path.format(take=short))[::2] == (204, b"")


def test_players_may_seek(comfy, short):
    path = f"/helios/takes/{short}/0/video"
    whole = get(comfy, path)[2]
    for asked, wanted in {"0-": whole, "5-9": whole[5:10], "-7": whole[-7:], "10-999999999": whole[10:]}.items():
        status, kind, data = get(comfy, path, Range=f"bytes={asked}")
        assert (status, kind, data) == (206, "video/mp4", wanted)
    for asked in ("999999999-", "x-y", "-0", "-00"):
        assert get(comfy, path, Range=f"bytes={asked}")[0] == 416


@pytest.mark.parametrize(
    "path",
    [
        "x/0/video",
        "{take}/-1/video",
        "{take}/0/secret",
        "{take}/..%2F..%2Fetc/video",
        "..%2F..%2Fa/0/video",
        "{take}/1e9/video",
    ],
)
def test_malformed_addresses_are_refused_in_one_sentence(comfy, short, path):
    status, kind, data = get(comfy, "/helios/takes/" + path.format(take=short))
    assert (status, kind) == (400, "application/json")
    assert json.loads(data)["error"].endswith("thumbnail or video.")


def test_emptied_store_has_no_content(comfy):
    store = comfy.log_file.parent / "output" / "helios_store"
    others = set(store.glob("*.segment.mp4"))
    _, take = run(comfy, film("emptied", chunks=1, seed=106))
    (own,) = set(store.glob("*.segment.mp4")) - others
    own.unlink()
    assert get(comfy, f"/helios/takes/{take}/0/video")[0] == 204
    assert get(comfy, f"/helios/takes/{take}/0/thumbnail")[0] == 204


def test_interrupt_is_told_and_leaves_finished_parts(comfy):
    prompt_id = comfy.queue(film("stopped", chunks=400, seed=107))
    comfy.wait_for_event(
        lambda e: e.type == "helios.take" and e.data["kind"] == "chunk" and e.data["chunk"]["state"] == "finished"
        and e.data["id"] in {event["id"] for event in take_events(comfy, prompt_id)}
    )  # fmt: skip
    comfy.interrupt()
    comfy.wait(prompt_id)
    events = take_events(comfy, prompt_id)
    assert (events[-1]["kind"], events[-1]["status"], events[-1]["message"]) == ("end", "interrupted", "")
    take = state(comfy, events[0]["id"])
    done = [cell["chunk"] for cell in take["chunks"] if cell["state"] == "finished"]
    assert done and len(done) < 400
    for chunk in done:
        assert frames(get(comfy, f"/helios/takes/{take['id']}/{chunk}/video")[2]) == FRAMES


def test_failure_is_told_with_its_sentence(comfy):
    graph = film("failing", seed=108)
    graph["two"] = node("ConditioningCombine", conditioning_1=["negative", 0], conditioning_2=["negative", 0])
    graph["rows"] = node(
        "HeliosPromptSchedule",
        **{"rows.row_0": ["two", 0], "rows.row_1": ["negative", 0], "first_chunks": "0, 1", "blend": 3},
    )
    graph["render"]["inputs"]["positive"] = ["rows", 0]
    prompt_id = comfy.queue(graph)
    assert failure(comfy.wait(prompt_id)) is not None
    end = take_events(comfy, prompt_id)[-1]
    assert end["status"] == "failed" and "cannot be blended" in end["message"]


def test_texts_of_the_rows_come_from_the_graph(comfy):
    graph = film("rows", chunks=1, seed=109)
    graph["late"] = node("CLIPTextEncode", clip=["clip", 0], text=["words", 0])
    graph["words"] = node("PrimitiveString", value="a fire")
    graph["rows"] = node(
        "HeliosPromptSchedule",
        **{"rows.row_0": ["late", 0], "first_chunks": "5", "blend": 0, "before": ["positive", 0]},
    )
    graph["render"]["inputs"]["positive"] = ["rows", 0]
    events, _ = run(comfy, graph)
    assert events[0]["take"]["rows"] == [[0, "a boat"], [2, "a storm"], [5, "a fire"]]


def binary_messages(comfy, graph):
    """Runs a graph and returns the progress texts of its render, as any websocket client gets them."""
    texts = []

    async def follow():
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{comfy.url}/ws?clientId=texts", max_msg_size=0) as socket,
        ):
            ready.set()
            async for message in socket:
                if isinstance(message.data, bytes):
                    if struct.unpack(">I", message.data[:4])[0] == TEXT_MESSAGE:
                        length = struct.unpack(">I", message.data[4:8])[0]
                        texts.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))
                elif '"helios.take"' in message.data and json.loads(message.data)["data"]["kind"] == "end":
                    return

    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(follow(), 60)))
    thread.start()
    assert ready.wait(30)
    prompt_id = comfy.queue(graph)
    assert failure(comfy.wait(prompt_id)) is None
    thread.join(60)
    return prompt_id, texts


def test_one_readout_and_previews_of_decoded_frames(comfy):
    prompt_id, texts = binary_messages(comfy, film("texts", seed=110))
    assert texts == [], "the events are the one readout"
    # Previews while sampling come from latents; after each chunk there is one that is its last frame.
    shown = [pixels(Image.open(io.BytesIO(e.image))) for e in comfy.events(prompt_id, "preview") if e.image]
    take = take_events(comfy, prompt_id)[0]["id"]
    for chunk in range(3):
        with av.open(io.BytesIO(get(comfy, f"/helios/takes/{take}/{chunk}/video")[2])) as container:
            *_, last = container.decode(video=0)
        distances = [(preview - pixels(last.to_image())).abs().mean().item() for preview in shown]
        assert sum(distance < 10 for distance in distances) == 1, distances


def pixels(image):
    small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float()


def test_nothing_is_made_while_nobody_listens(new_comfy):
    server = new_comfy(("--cpu", "--force-fp32", "--fp32-text-enc"))
    heard, _ = run(server, chain(1, seed=112))
    server._stream.close()
    assert failure(server.wait(server.queue(chain(1, seed=113)))) is None
    assert [e.data["id"] for e in server.events(kind="helios.take") if e.data["kind"] == "start"] == [heard[0]["id"]]
    with_page, without = server.get("/helios/takes")["takes"]
    assert (with_page["chunks"][0]["thumbnail"], without["chunks"][0]["thumbnail"]) == (True, False)
    assert without["chunks"][0]["state"] == "finished"


def saved_latents(comfy, prompt_id) -> torch.Tensor:
    (item,) = comfy.get(f"/history/{prompt_id}")[prompt_id]["outputs"]["save"]["latents"]
    return load_file(Path(comfy.log_file.parent / "output" / item["subfolder"] / item["filename"]))["latent_tensor"]


def latents(comfy, graph) -> torch.Tensor:
    prompt_id = comfy.queue(graph)
    assert failure(comfy.wait(prompt_id)) is None
    return saved_latents(comfy, prompt_id)


def by_hand(seeds):
    graph = chain(1)
    inputs = {k: v for k, v in graph.pop("chain")["inputs"].items() if k not in ("num_chunks", "seed", "history")}
    last = ["history", 0]
    for index, seed in enumerate(seeds):
        graph[f"chunk{index}"] = node("HeliosSampleChunk", **inputs, seed=seed, history=last)
        last = [f"chunk{index}", 1]
        graph[f"save{index}"] = node("SaveLatent", samples=[f"chunk{index}", 0], filename_prefix=f"latents/{index}")
    del graph["save"]
    return graph


@pytest.mark.parametrize(
    ("changes", "seeds"), [("1: 5", [3, 5, 5]), ("1: 5, 2: 3", [3, 5, 3]), ("0: 9", [9, 9, 9]), ("7: 1", [3, 3, 3])]
)
def test_seed_changes_equal_chunks_chained_by_hand(comfy, changes, seeds):
    chained = latents(comfy, chain(seed_changes=changes))
    prompt_id = comfy.queue(by_hand(seeds))
    outputs = comfy.wait(prompt_id)["outputs"]
    files = [outputs[f"save{index}"]["latents"][0] for index in range(3)]
    folder = comfy.log_file.parent / "output"
    parts = [load_file(folder / item["subfolder"] / item["filename"])["latent_tensor"] for item in files]
    assert torch.equal(chained, torch.cat(parts, dim=2))
    plain = latents(comfy, chain())
    assert torch.equal(chained, plain) == (seeds == [3, 3, 3])


def test_seed_change_samples_from_its_chunk_on(comfy):
    run(comfy, film("rolled", chunks=4, seed=111))
    _, take = run(comfy, film("rolled", chunks=4, seed=111, seed_changes="2: 5"))
    assert [cell["reused"] for cell in state(comfy, take)["chunks"]] == [True, True, False, False]
    assert state(comfy, take)["seed_changes"] == [[2, 5]]
    _, take = run(comfy, film("rolled", chunks=4, seed=111, seed_changes="2: 5, 3: 6"))
    assert [cell["reused"] for cell in state(comfy, take)["chunks"]] == [True, True, True, False]
    # The changed film is the chain's, whose chunks the store has by now.
    _, take = run(comfy, chain(4, seed=111, seed_changes="2: 5", take="rolled-chain"))
    assert [cell["reused"] for cell in state(comfy, take)["chunks"]] == [True] * 4
    stored = latents(comfy, chain(4, seed=111, seed_changes="2: 5", take="rolled-again"))
    assert torch.equal(stored, latents(comfy, chain(4, seed=111, seed_changes="2: 5")))


@pytest.mark.parametrize(
    "graph", [film("bad", seed_changes="two: 5"), chain(seed_changes="two: 5")], ids=["render", "chain"]
)
def test_bad_seed_changes_are_refused_before_anything_runs(comfy, graph):
    with pytest.raises(PromptRejectedError, match="seed_changes has 'two: 5', which is not a chunk and its seed"):
        comfy.queue(graph)


def test_without_a_file_the_store_alone_gets_chunks_and_parts(comfy):
    output = comfy.log_file.parent / "output"
    _, take = run(comfy, film("versions", chunks=2, seed=114))
    files = set(output.rglob("*.mp4"))
    changed = film("versions", chunks=2, seed=114, seed_changes="1: 5", write_file=False, take="a version")
    prompt_id = comfy.queue(changed)
    assert failure(comfy.wait(prompt_id)) is None
    new = {file.parent.name for file in set(output.rglob("*.mp4")) - files}
    assert new == {"helios_store"}
    version = take_events(comfy, prompt_id)[0]["id"]
    state_of = state(comfy, version)
    assert (state_of["store_only"], state_of["film"], state_of["status"]) == (True, None, "finished")
    assert [(chunk["reused"], chunk["video"]) for chunk in state_of["chunks"]] == [(True, True), (False, True)]
    first, second = (get(comfy, f"/helios/takes/{one}/0/video")[2] for one in (take, version))
    assert first == second and frames(get(comfy, f"/helios/takes/{version}/1/video")[2]) == FRAMES
    assert "a version" not in [stored["name"] for stored in comfy.get("/helios/library")["takes"]]
    # The film that goes on from it samples nothing that the version has.
    _, picked = run(comfy, film("versions", chunks=3, seed=114, seed_changes="1: 5"))
    assert [chunk["reused"] for chunk in state(comfy, picked)["chunks"]] == [True, True, False]
