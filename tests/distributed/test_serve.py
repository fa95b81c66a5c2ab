"""The application on real Ray Serve: a hundred requests at once, of which some are wrong and some are taken back."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import farm_stub
import pytest
from PIL import Image

from helios_core.commands.renderer import PipelineRenderer, model_size
from helios_core.distributed.farm_worker import FarmFolder, FilmWorker, code_version
from helios_core.distributed.jobs import Job
from helios_core.take.store import CHUNK_SUFFIX, ChunkStore

pytestmark = pytest.mark.slow
ASKED, MALFORMED, CANCELLED, CHUNKS = 100, 20, 10, 2
TOKEN = {"Authorization": "Bearer secret"}


@contextmanager
def service(cluster, renderer, sizes, **values: str) -> Iterator[str]:
    """The address of a service on ``cluster``."""
    import ray
    from ray import serve

    from helios_core.distributed.serve import DEFAULTS, application

    ray.init(cluster.address, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": 18437})
    try:
        serve.run(application({**DEFAULTS, "queue": str(ASKED), **values}, renderer, sizes))
        yield "http://127.0.0.1:18437/v1/videos"
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def served(ray_cluster, tmp_path, monkeypatch):
    """The address of a service with two replicas, and its folder."""
    monkeypatch.setenv("HELIOS_SERVE_TOKEN", "secret")
    stub, output = farm_stub.StubRenderer(tmp_path / "notes", seconds=0.1), tmp_path / "films"
    with service(ray_cluster, stub, farm_stub.size, model="stub", output=str(output), replicas="2") as url:
        yield url, output


def front_memory() -> float:
    """MiB of the process that takes the requests."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"VideoService" in (process / "cmdline").read_bytes():
                return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        except OSError:
            continue
    return 0.0


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


async def one(session: aiohttp.ClientSession, url: str, number: int) -> str:
    """What became of one request."""
    wrong = [b"{", b"[1]", b'{"prompt": ""}', b'{"prompt": "x", "size": "63x64"}', b'{"prompt": "x", "lora": "y"}']
    body = wrong[number % len(wrong)] if number < MALFORMED else json.dumps(
        {"prompt": f"film {number}", "seed": number, "num_frames": 33 * CHUNKS}
    ).encode()  # fmt: skip
    async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
        told = await response.json()
        if response.status != 200:
            return f"{response.status}"
    name = told["id"]
    if number < MALFORMED + CANCELLED:
        await asyncio.sleep(0.02 * number)
        async with session.delete(f"{url}/{name}") as response:
            assert response.status == 200
        async with session.get(f"{url}/{name}") as response:
            return f"deleted, then {response.status}"
    while told["status"] in ("queued", "in_progress"):
        await asyncio.sleep(0.5)
        async with session.get(f"{url}/{name}") as response:
            told = await response.json()
    async with session.get(f"{url}/{name}/content") as response:
        content = await response.read()
    return f"{told['status']}, {'a film' if content[4:8] == b'ftyp' else content[:80]}"


async def hundred(url: str) -> Counter:
    async with aiohttp.ClientSession(headers=TOKEN, timeout=aiohttp.ClientTimeout(600)) as session:
        return Counter(await asyncio.gather(*(one(session, url, number) for number in range(ASKED))))


def test_a_hundred_requests(served):
    url, folder = served
    rest = ASKED - MALFORMED - CANCELLED
    expected = {"400": MALFORMED, "deleted, then 404": CANCELLED, "completed, a film": rest}
    assert asyncio.run(hundred(url)) == expected
    after_one = front_memory()
    assert asyncio.run(hundred(url)) == expected
    print(f"front: {after_one:.0f} MiB after a hundred requests, {front_memory():.0f} after two hundred")
    assert front_memory() - after_one < 20
    until(lambda: len(list(folder.glob("*.mp4"))) == 2 * rest)  # replicas may still be at films that were taken back
    assert not list(folder.glob("*.part*"))
    assert len(list(folder.glob("video_*.json"))) == 2 * rest

    async def without_token() -> int:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status

    assert asyncio.run(without_token()) == 401


def test_a_replica_of_two_processes(ray_cluster, tiny_folder, tmp_path):
    """A form with a picture to a film, whose latents are one process' to 1e-5."""
    renderer, output = PipelineRenderer({}, processes=2), tmp_path / "films"
    picture = io.BytesIO()
    Image.new("RGB", (90, 70), "red").save(picture, "PNG")

    async def film(url: str) -> str:
        form = aiohttp.FormData({"prompt": "a boat", "size": "64x64", "num_frames": "33", "seed": "4"})
        form.add_field("input_reference", picture.getvalue(), filename="boat.png", content_type="image/png")
        async with aiohttp.ClientSession() as session:
            async with session.post(url, data=form) as response:
                told = await response.json()
                assert response.status == 200, told
            while told["status"] in ("queued", "in_progress"):
                await asyncio.sleep(0.5)
                async with session.get(f"{url}/{told['id']}") as response:
                    told = await response.json()
        assert told["status"] == "completed", told
        return told["id"]

    values = {"model": str(tiny_folder("distilled")), "output": str(output)}
    with service(ray_cluster, renderer, model_size, **values) as url:
        name = asyncio.run(film(url))
    (video,) = (json.loads(path.read_text()) for path in output.glob("video_*.json"))
    assert video["job"]["image"].endswith(f"{name}.png") and Path(video["job"]["image"]).is_file()
    rows = tuple(tuple(row) for row in video["job"]["rows"])
    job = Job(**{**video["job"], "rows": rows, "steps": tuple(video["job"]["steps"])})
    alone = FarmFolder(tmp_path, tmp_path / "store")
    assert FilmWorker(PipelineRenderer({}), code_version()).render(job, alone).message == ""
    (path,) = alone.store.glob(f"*{CHUNK_SUFFIX}")
    expected, made = (
        ChunkStore(store).get_chunk(path.name.removesuffix(CHUNK_SUFFIX))
        for store in (alone.store, output / "helios_store")
    )
    assert (made.latents - expected.latents).abs().max() <= 1e-5 * expected.latents.std()
