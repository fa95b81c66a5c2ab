"""Helios Farm Render: the server names the cluster, and a film of a local one equals that of the command line."""

import json
import time

import pytest
from helios_comfy_graphs import SIZE, TINY, node

from helios_core.commands.cli import main
from helios_core.commands.renderer import PipelineRenderer, model_size
from helios_core.distributed.farm_worker import FarmFolder, FilmWorker, code_version
from helios_core.distributed.jobs import job_of
from helios_core.take.store import ChunkStore
from helios_core.video.reader import read_video
from helios_setup.server import output_files


def graph(**changes):
    usual = {"prompts": "a boat", "model": TINY, "width": SIZE, "height": SIZE, "num_chunks": 2, "seed": 3}
    return {"farm": node("HeliosFarmRender", filename_prefix="farmed", **usual | changes)}


def details(comfy, queued):
    status, body = comfy.post_raw("/prompt", {"prompt": queued, "client_id": comfy.client_id})
    assert status == 400, body
    return [error["details"] for error in body["node_errors"]["farm"]["errors"]]


def test_a_workflow_names_no_cluster(comfy):
    (said,) = details(comfy, graph())
    assert "HELIOS_RAY_ADDRESS is not set in the server's environment; set it to the Ray cluster's" in said
    assert not [name for name in comfy.object_info("HeliosFarmRender") if "address" in name]


@pytest.fixture
def farming(new_comfy, monkeypatch):
    """A ComfyUI whose farm is this machine alone."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[serve]"')
    monkeypatch.setenv("HELIOS_RAY_ADDRESS", "local")
    return new_comfy()


@pytest.mark.slow
def test_two_films_and_an_interrupt(farming, tiny_folder, tmp_path):
    comfy, output = farming, farming.log_file.parent / "output"
    prompts = "a boat\n---\n0: rain\n1: snow"
    files = output_files(comfy.run(graph(prompts=prompts)), output)
    assert [file.name for file in files] == ["farmed_00001_.mp4", "farmed_00002_.mp4"]
    worker, alone = FilmWorker(PipelineRenderer({}), code_version()), FarmFolder(tmp_path, tmp_path / "store")
    row = {"model": str(tiny_folder("distilled")), "width": str(SIZE), "height": str(SIZE), "chunks": "2", "seed": "3"}
    for file, text in zip(files, ("a boat", "0: rain\n1: snow"), strict=True):
        job = job_of({**row, "id": file.stem, "prompt_schedule": text}, 1, tmp_path, {}, model_size)
        assert worker.render(job, alone).message == ""
        assert (read_video(file) == read_video(alone.film(job))).all()
    events = [event.data for event in comfy.events(kind="helios.take")]
    ended = [event for event in events if event["kind"] == "end"]
    assert [event["status"] for event in ended] == ["finished"] * 2
    chunks = {
        (e["id"], e["chunk"]["chunk"]) for e in events if e["kind"] == "chunk" and e["chunk"]["state"] == "finished"
    }
    assert len(chunks) == 4 and all(e["chunk"]["video"] for e in events if e["kind"] == "chunk" and e["chunk"]["video"])
    assert comfy.get("/helios/takes")["takes"][-1]["rows"]

    queued = comfy.queue(graph(prompts="fog", num_chunks=400))
    comfy.wait_for_event(lambda event: event.type == "helios.take" and event.data["kind"] == "chunk", 120)
    comfy.interrupt()
    comfy.wait(queued)
    time.sleep(1)
    # A picture of a chunk may still come after the end.
    ends = [event.data for event in comfy.events(kind="helios.take") if event.data["kind"] == "end"]
    assert ends[-1]["status"] == "interrupted"
    kept = len(list((output / "helios_store").glob("*.chunk.safetensors")))
    time.sleep(2)
    assert len(list((output / "helios_store").glob("*.chunk.safetensors"))) == kept, "nothing renders on"


@pytest.mark.slow
def test_a_server_whose_films_have_two_processes(new_comfy, tiny_folder, tmp_path, monkeypatch):
    """Four films; and those that are there but were not published get their names in the order of the prompts."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[serve]"')
    monkeypatch.setenv("HELIOS_RAY_ADDRESS", "local")
    monkeypatch.setenv("HELIOS_GPUS_PER_FILM", "2")
    comfy = new_comfy()
    output, prompts = comfy.log_file.parent / "output", ["a boat", "rain", "snow", "fog"]
    queued = graph(prompts="\n---\n".join(prompts), num_chunks=1)
    first = output_files(comfy.run(queued), output)
    assert [file.name for file in first] == [f"farmed_0000{i}_.mp4" for i in range(1, 5)]
    comfy.post_raw("/free", {"free_memory": True})  # or it would not run again

    # As a run leaves them that broke off before it published: made again by the same farm.
    store, jobs = ChunkStore(output / "helios_store"), tmp_path / "jobs.jsonl"
    names = {take["settings"]["prompt"]: take["take"] for take in store.manifests()}
    usual = {"model": str(tiny_folder("distilled")), "width": SIZE, "height": SIZE, "chunks": 1, "seed": 3}
    rows = [{"id": names[prompt], "prompt": prompt, **usual} for prompt in reversed(prompts)]
    jobs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = store.folder / "farm"
    assert main(["farm", str(jobs), "--output", str(folder), "--store", str(store.folder), "--json"]) == 0
    assert len(list(folder.glob("*.mp4"))) == 4 and len(list(store.folder.glob("*.chunk.safetensors"))) == 4

    again = output_files(comfy.run(queued), output)
    assert [file.name for file in again] == [f"farmed_0000{i}_.mp4" for i in range(5, 9)], "in the prompts' order"
    for file, earlier in zip(again, first, strict=True):
        assert (read_video(file) == read_video(earlier)).all()
    assert not list(folder.glob("*.mp4"))

    comfy.stop()
    monkeypatch.setenv("HELIOS_GPUS_PER_FILM", "two")
    (said,) = details(new_comfy(), queued)
    assert "HELIOS_GPUS_PER_FILM='two' in the server's environment is no number of GPUs; set 1 or more" in said
