"""The service without Serve: its fields, its answers, and films that a worker in this process makes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[serve]"')

from starlette.requests import Request

from helios_core.commands.renderer import PipelineRenderer, model_size
from helios_core.distributed.farm_worker import FarmFolder, code_version
from helios_core.distributed.serve_api import LARGEST_IMAGE, video_of
from helios_core.distributed.serve_films import FilmReplica, Service, VideoService
from helios_core.errors import HeliosError

MODELS = {"tiny": "helios-tiny-distilled", "mid": "helios-tiny-mid"}


def asked(folder: Path, **fields):
    return video_of({"prompt": "a boat", **fields}, "video_1", MODELS, folder, model_size)


def test_the_same_film_in_the_words_of_three_apis(tmp_path):
    openai = asked(tmp_path, size="128x64", seconds="3", model="tiny")
    sglang = asked(tmp_path, size="128x64", seconds=3, fps=24, generator_device="cuda", seed=0)
    vllm = asked(tmp_path, video_params={"width": 128, "height": 64, "num_frames": 72, "fps": 24}, seed=0)
    assert openai.job == sglang.job == vllm.job
    assert (openai.job.frames, openai.job.chunks, openai.job.width, openai.job.height) == (72, 3, 128, 64)
    more = asked(tmp_path, num_inference_steps=[4, 4, 4], guidance_scale=3.5, negative_prompt="fog", seed=2**64 - 1)
    assert (more.job.steps, more.job.guidance, more.job.negative_prompt) == ((4, 4, 4), 3.5, "fog")
    assert (more.job.seed, more.job.frames) == (2**64 - 1, 96), "four seconds where nothing is said"
    assert (more.job.width, more.job.height) == (320, 192), "the model's own size"


def test_a_picture_comes_within_the_request(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (90, 70), "red").save(file, "JPEG")
    data = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    for reference in ({"input_reference": data}, {"image_reference": {"image_url": data}}):
        job = asked(tmp_path, **reference).job
        assert job.image == str(tmp_path / "video_1.png") and Image.open(job.image).size == (90, 70)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "has no prompt"),
        ({"model": []}, "model=[] is not served"),
        ({"size": "8192x64"}, "larger than 4096 a side"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"fps": 1e-320}, "frame rate"),
        ({"model": "sora-2"}, "model='sora-2' is not served; use one of tiny, mid"),
        ({"size": "large"}, "size='large' is no size"),
        ({"seconds": "0"}, "seconds=0 must be above 0"),
        ({"num_frames": -1}, "duration='-1' is no whole number"),
        ({"seed": True}, "seed=True is neither text nor a number"),
        ({"lora": {"path": "x"}}, "lora={'path': 'x'} is not offered here"),
        ({"input_reference": "/etc/passwd"}, "is no picture; send data:image/png;base64"),
        ({"reference_url": "http://127.0.0.1/"}, "is no picture; send data:image/png;base64"),
        ({"input_reference": "data:image/png;base64,AAAA"}, "the picture cannot be read"),
        ({"video_params": {"loop": 1}}, "takes width, height, fps, num_frames alone"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path, fields, message):
    with pytest.raises(HeliosError, match=r"^[^\n]+$") as error:
        asked(tmp_path, **fields)
    assert message in str(error.value) and not list(tmp_path.iterdir())


class Here:
    """Stands where Serve's handle does: one replica in this process, which takes one film after the other."""

    def __init__(self, replica: FilmReplica):
        self._replica, self._turn, self.render = replica, asyncio.Lock(), self

    def remote(self, job, folder) -> asyncio.Task:
        return asyncio.create_task(self._in_turn(job, folder))

    async def _in_turn(self, job, folder):
        async with self._turn:
            return await self._replica.render(job, folder)


async def ask(service: VideoService, method: str, path: str = "/v1/videos", body=None, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", **headers}
    head = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": head, "query_string": b"", "server": ("a", 1)}
    scope["scheme"] = "http"

    async def receive():
        return {"type": "http.request", "body": content, "more_body": False}

    response = await service(Request(scope, receive))
    return response.status_code, (json.loads(response.body) if hasattr(response, "body") else response)


@pytest.fixture
def served(tiny_folder, tmp_path):
    """Begins a service in the running loop."""
    folder = FarmFolder(tmp_path / "films", tmp_path / "films" / "store")

    def serve(queue: int = 2, token: str = "") -> VideoService:
        replicas = Here(FilmReplica(PipelineRenderer({}), code_version()))
        offered = Service(folder, {"tiny": str(tiny_folder("distilled"))}, queue, token)
        return VideoService(replicas, PipelineRenderer({}), model_size, offered)

    return serve


FILM = {"prompt": "a boat", "size": "64x64", "num_inference_steps": [1, 1, 1]}


async def ended(service: VideoService, name: str) -> dict:
    while (found := (await ask(service, "GET", f"/v1/videos/{name}"))[1])["status"] in ("queued", "in_progress"):
        await asyncio.sleep(0.05)
    return found


def test_a_film_from_request_to_download(served):
    async def go():
        service = served()
        status, video = await ask(service, "POST", body={**FILM, "num_frames": 66})
        assert status == 200 and (video["status"], video["object"], video["size"]) == ("queued", "video", "64x64")
        path = f"/v1/videos/{video['id']}"
        assert (await ask(service, "GET", f"{path}/content"))[0] == 409
        done = await ended(service, video["id"])
        assert (done["status"], done["progress"], done["error"], done["seconds"]) == ("completed", 100, None, "3")
        status, response = await ask(service, "GET", f"{path}/content")
        assert status == 200 and response.media_type == "video/mp4" and Path(response.path).stat().st_size > 1000
        again = served()
        assert (await ask(again, "GET", path))[1] == done, "a new front knows it"
        assert (await ask(again, "GET"))[1]["data"] == [done]
        assert (await ask(again, "DELETE", path))[1] == {"id": video["id"], "object": "video.deleted", "deleted": True}
        assert (await ask(again, "GET", path))[0] == 404 and not Path(response.path).exists()

    asyncio.run(go())


def form(*parts: tuple[str, str, bytes]) -> dict:
    """A request's body and type: parts of a name, a file's name or none, and content (RFC 7578)."""
    body = b""
    for name, file, content in parts:
        named = f'; filename="{file}"\r\nContent-Type: image/png' if file else ""
        body += f'--edge\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"
    return {"body": body + b"--edge--\r\n", "content-type": "multipart/form-data; boundary=edge"}


TEXTS = (("prompt", "", b"ein Boot \xc3\xbc"), ("size", "", b"64x64"), ("num_frames", "", b"33"), ("seed", "", b"7"))


def test_a_form_with_a_picture_to_a_film(served):
    file = io.BytesIO()
    Image.new("RGB", (90, 70), "red").save(file, "PNG")

    async def go():
        service = served()
        status, video = await ask(service, "POST", **form(*TEXTS, ("input_reference", "boat.png", file.getvalue())))
        assert status == 200 and (video["prompt"], video["size"], video["seconds"]) == ("ein Boot \u00fc", "64x64", "2")
        done = await ended(service, video["id"])
        assert done["status"] == "completed", done["error"]
        _, response = await ask(service, "GET", f"/v1/videos/{video['id']}/content")
        kept = Path(response.path).with_suffix(".png")
        assert Image.open(kept).size == (90, 70) and Path(response.path).stat().st_size > 1000
        await ask(service, "DELETE", f"/v1/videos/{video['id']}")
        assert not kept.exists()

    asyncio.run(go())


def test_forms_that_cannot_be_read(served):
    async def go():
        service = served()
        whole = form(*TEXTS)
        picture = ("input_reference", "a.png", b"not a picture")
        for broken, words in (
            ({**whole, "content-type": "multipart/form-data"}, "the form cannot be read (Missing boundary"),
            ({**whole, "body": whole["body"].replace(b"name=", b"nam=")}, "the form cannot be read (The Content-Disp"),
            (form(*TEXTS, picture, ("image_reference", "b.png", b"x")), "Too many files. Maximum number of files is 1"),
            (form(*TEXTS, picture), "the picture cannot be read; send a whole PNG"),
            (form(*TEXTS, ("input_reference", "a.png", bytes(LARGEST_IMAGE + 1))), "has 20,000,001 bytes, at most"),
            (form(("prompt", "a.txt", b"a boat")), "prompt=b'a boat' is neither text nor a number"),
        ):
            status, said = await ask(service, "POST", **broken)
            assert status == 400 and words in said["error"]["message"], said
            assert "\n" not in said["error"]["message"]
        assert (await ask(service, "GET"))[1]["data"] == [] and not list(service._output.glob("*.png"))

    asyncio.run(go())


def test_full_cancelled_and_free_again(served):
    async def go():
        service = served(queue=2)
        names = [(await ask(service, "POST", body={**FILM, "num_frames": 33000}))[1]["id"] for _ in range(2)]
        status, said = await ask(service, "POST", body=FILM)
        assert status == 429 and said["error"]["type"] == "rate_limit_error"
        assert said["error"]["message"].startswith("2 films wait or are made")
        for name in names:
            assert (await ask(service, "DELETE", f"/v1/videos/{name}"))[0] == 200
        status, video = await ask(service, "POST", body={**FILM, "num_frames": 33})
        assert status == 200 and (await ended(service, video["id"]))["status"] == "completed"

    asyncio.run(go())


def test_answers_to_what_is_no_request(served):
    async def go():
        service = served(token="secret")
        assert (await ask(service, "GET"))[0] == 401
        assert (await ask(service, "GET", authorization="Bearer wrong"))[0] == 401
        bearing = {"authorization": "Bearer secret"}
        assert (await ask(service, "GET", **bearing))[0] == 200
        for body in (b"{", b"[]", b'"x"', b"\xff" * 9, {"prompt": "x", "size": "63x64"}, {}):
            status, said = await ask(service, "POST", body=body, **bearing)
            assert status == 400 and said["error"]["message"].endswith(".") and said["error"]["code"] == 400
        assert (await ask(service, "PUT", **bearing))[0] == 405
        assert (await ask(service, "GET", "/v1/videos/video_x", **bearing))[0] == 404
        assert (await ask(service, "GET", "/v1/videos/../../etc/passwd", **bearing))[0] == 404
        assert (await ask(service, "GET", "/", **bearing))[0] == 404

    asyncio.run(go())


def test_the_applications_arguments(tiny_folder, tmp_path):
    from helios_core.distributed.serve import app

    assert type(app({"model": str(tiny_folder("distilled")), "output": str(tmp_path)})).__name__ == "Application"
    with pytest.raises(HeliosError, match="argument 'modle' is unknown; use model, output"):
        app({"modle": "x"})
    with pytest.raises(HeliosError, match="replicas='none' is no whole number of at least 1"):
        app({"replicas": "none"})


def test_what_a_page_of_another_site_can_send(served):
    async def go():
        service = served()
        for headers in ({"content-type": "text/plain"}, {"origin": "http://elsewhere"}):
            status, said = await ask(service, "POST", body=FILM, **headers)
            assert status in (400, 403), said
        assert (await ask(service, "GET"))[1]["data"] == []

    asyncio.run(go())


def test_half_a_character_is_refused_and_the_list_stays_whole(served):
    async def go():
        service = served()
        status, said = await ask(service, "POST", body=b'{"prompt": "\\ud800"}')
        assert status == 400 and "surrogate" in said["error"]["message"]
        assert (await ask(service, "GET"))[0] == 200

    asyncio.run(go())
