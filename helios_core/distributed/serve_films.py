"""The service on Ray Serve: replicas that hold a pipeline, and the front that takes requests and knows the films.

Serve places and restarts both, and queues what waits; the chunk store keeps what was finished of a film whose replica
died, or that is asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import ray
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from ..errors import HeliosError, shortened
from ..networks.settings import parse_object, read_object
from ..take.store import ChunkStore, make_folder, write_atomically
from .farm_worker import MOST_TRIES, FarmFolder, FilmWorker, Outcome, Renderer
from .jobs import Job, Sizes
from .serve_api import LARGEST_IMAGE, Video, checked, video_of

# Ended films that are remembered; older ones go with their files.
MOST_FILMS = 1000
LARGEST_BODY = 2 * LARGEST_IMAGE
RETRY_SECONDS = 10
_PATH = re.compile(r"/v1/videos(?:/(?P<id>\w{1,64})(?P<content>/content)?)?/?")


@dataclass(frozen=True)
class Service:
    """What is served: ``models`` by the names that clients use, at most ``queue`` films that wait or are made.

    ``token``: what clients must bear; empty for all of them.
    """

    folder: FarmFolder
    models: Mapping[str, str]
    queue: int
    token: str = field(default="", repr=False)


class FilmReplica:
    """A worker of the service; one film at a time."""

    def __init__(self, renderer: Renderer, version: str):
        self._worker = FilmWorker(renderer, version)

    async def render(self, job: Job, folder: FarmFolder) -> Outcome:
        """Makes a film; when the request is cancelled it ends at the next step."""
        made = asyncio.ensure_future(asyncio.to_thread(self._worker.render, job, folder))
        try:
            return await asyncio.shield(made)
        except asyncio.CancelledError:
            self._worker.stop()
            await made
            folder.forget(job.id)  # it may have been done in the same moment
            raise


class VideoService:
    """Takes requests; the films' records lie beside them, so that a new front knows them."""

    def __init__(self, replicas: Any, renderer: Renderer, sizes: Sizes, service: Service):
        self._replicas, self._renderer, self._sizes, self._service = replicas, renderer, sizes, service
        self._store, self._output = ChunkStore(service.folder.store), service.folder.output
        self._videos: dict[str, Video] = {}
        self._entering: set[str] = set()  # being checked
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._responses: dict[str, Any] = {}
        make_folder(self._output)
        self._store.prepare()
        self._remember()

    async def __call__(self, request: Request) -> Response:
        """Every HTTP request."""
        if not self._is_allowed(request):
            return _error(401, "Authorization does not bear the service's token; send 'Bearer TOKEN'.")
        if not self._service.token and "origin" in request.headers:
            return _error(403, "a page of another site asks; set HELIOS_SERVE_TOKEN to serve pages as well.")
        match = _PATH.fullmatch(request.url.path)
        if match is None:
            return _error(404, f"{request.url.path} is nothing here; use /v1/videos.")
        name, method = match["id"], request.method
        if name is None:
            return await self._listed(method, request)
        video = self._videos.get(name)
        if video is None:
            return _error(404, f"video {name} is not known here; it may have been deleted.")
        if match["content"] and method == "GET":
            return self._content(video)
        if match["content"] is None and method == "GET":
            return JSONResponse(await self._told(video))
        if match["content"] is None and method == "DELETE":
            return await self._delete(video)
        return _error(405, f"{method} is not offered here.")

    def _is_allowed(self, request: Request) -> bool:
        wanted, given = f"Bearer {self._service.token}", request.headers.get("authorization", "")
        return not self._service.token or hmac.compare_digest(given.encode(), wanted.encode())

    async def _listed(self, method: str, request: Request) -> Response:
        if method == "GET":
            data = [await self._told(video) for video in reversed(self._videos.values())]
            ends = (
                {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
            )
            return JSONResponse({"object": "list", "data": data, "has_more": False, **ends})
        if method != "POST":
            return _error(405, f"{method} is not offered here.")
        try:
            fields = await _fields(request)
            return await self._create(fields)
        except HeliosError as error:
            return _error(400, str(error))

    async def _create(self, fields: Mapping[str, Any]) -> Response:
        if len(self._at_work) + len(self._entering) >= self._service.queue:
            message = f"{self._service.queue} films wait or are made, which is all that this service takes; try later."
            return _error(429, message, {"Retry-After": str(RETRY_SECONDS)})
        name = f"video_{uuid.uuid4().hex}"
        self._entering.add(name)
        try:
            video = await asyncio.to_thread(self._accepted, fields, name)
        finally:
            self._entering.remove(name)
        self._videos[name] = video
        self._at_work[name] = asyncio.create_task(self._follow(video))
        self._forget_old()
        return JSONResponse(await self._told(video))

    def _accepted(self, fields: Mapping[str, Any], name: str) -> Video:
        inputs = self._output
        try:
            video = video_of(fields, name, self._service.models, inputs, self._sizes)
            return self._noted(checked(video, self._renderer))
        except BaseException:
            (inputs / f"{name}.png").unlink(missing_ok=True)
            raise

    async def _follow(self, video: Video) -> None:
        """Has the film made, again where its replica died."""
        name = video.job.id
        message, seconds = f"its worker died {MOST_TRIES} times; ask again: finished chunks are kept.", None
        try:
            for _ in range(MOST_TRIES):
                if name not in self._videos:
                    return
                self._responses[name] = self._replicas.render.remote(video.job, self._service.folder)
                try:
                    outcome: Outcome = await self._responses[name]
                except ray.exceptions.RayActorError:
                    continue
                message, seconds = outcome.message, outcome.seconds
                break
        except Exception as error:  # what Serve itself says, of a replica that cannot start for example
            message = f"it could not be made ({str(error).strip().splitlines()[-1]})."
        finally:
            self._at_work.pop(name, None)
            self._responses.pop(name, None)
        if name not in self._videos:
            return
        ended = replace(video)
        ended.end(message, seconds)
        with contextlib.suppress(HeliosError):  # a disk that is full: this front knows it all the same
            await asyncio.to_thread(self._noted, ended)
        if name in self._videos:
            self._videos[name] = ended  # told only now, so that whoever was told finds it after a restart
        else:
            await asyncio.to_thread(self._remove_files, name)

    async def _told(self, video: Video) -> dict[str, Any]:
        return video.response(0 if video.ended else await asyncio.to_thread(self._chunks_done, video))

    def _chunks_done(self, video: Video) -> int:
        """From the take's manifest, which its worker writes."""
        with contextlib.suppress(HeliosError):
            chunks = read_object(self._store.takes / f"{video.job.id}.json").get("chunks")
            return len(chunks) if isinstance(chunks, list) else 0
        return 0

    def _content(self, video: Video) -> Response:
        if video.status == "failed":
            return _error(409, f"video {video.job.id} failed: {video.message}")
        film = self._service.folder.film(video.job)
        if video.status != "completed" or not film.is_file():
            return _error(409, f"video {video.job.id} is not finished; ask for its status first.")
        return FileResponse(film, media_type="video/mp4", filename=film.name)

    async def _delete(self, video: Video) -> Response:
        """Cancels a film that is not finished, and removes one that is; its chunks stay in the store."""
        name = video.job.id
        self._videos.pop(name, None)
        response, task = self._responses.get(name), self._at_work.get(name)
        if response is not None:
            response.cancel()
        if task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(self._remove_files, name)
        return JSONResponse({"id": name, "object": "video.deleted", "deleted": True})

    def _forget_old(self) -> None:
        ended = [name for name, video in self._videos.items() if video.ended]
        for name in ended[: max(0, len(self._videos) - MOST_FILMS)]:
            del self._videos[name]
            self._remove_files(name)

    # -- records ------------------------------------------------------------------------------------

    def _noted(self, video: Video) -> Video:
        try:
            write_atomically(self._output / f"{video.job.id}.json", json.dumps(asdict(video)).encode(), durable=False)
        except OSError as error:
            raise HeliosError(f"{self._output} cannot be written ({error.strerror}); free space there.") from None
        return video

    def _remember(self) -> None:
        """Films of an earlier front; those that it did not see end are to be asked for again."""
        for path in sorted(self._output.glob("video_*.json"), key=lambda path: path.stat().st_mtime):
            with contextlib.suppress(HeliosError, TypeError, KeyError):
                record = read_object(path)
                rows = tuple((first, text) for first, text in record["job"]["rows"])
                job = Job(**{**record["job"], "rows": rows, "steps": tuple(record["job"]["steps"])})
                video = Video(**{**record, "job": job})
                if not video.ended:
                    video.end("the service was started anew meanwhile; ask again: finished chunks are kept.")
                self._videos[job.id] = video

    def _remove_files(self, name: str) -> None:
        for suffix in (".json", ".png"):
            (self._output / f"{name}{suffix}").unlink(missing_ok=True)
        self._service.folder.forget(name)


async def _fields(request: Request) -> dict[str, Any]:
    """A request's fields, of JSON or of a form with a picture.

    Raises:
        HeliosError: too long, or neither.
    """
    if int(request.headers.get("content-length") or 0) > LARGEST_BODY:
        raise HeliosError(f"the request has more than {LARGEST_BODY:,} bytes; send a smaller picture.")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        # Any other type comes from any page that a browser shows, without asking.
        raise HeliosError(f"the request's type is {shortened(kind)}; send application/json, or a form.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise HeliosError(f"the request has more than {LARGEST_BODY:,} bytes; send a smaller picture.")
    if kind == "multipart/form-data":
        return await _form(request, bytes(body))
    fields = parse_object(bytes(body), "the request", "send one, or a form")
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HeliosError("the request has half of a surrogate pair; send whole characters.") from None
    return fields


async def _form(request: Request, body: bytes) -> dict[str, Any]:
    """The fields of a form that is ``body``, which has been read so that its length is known."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(request.scope, receive).form(max_files=1, max_part_size=LARGEST_BODY)
    except (MultiPartException, HTTPException) as error:
        why = error.message if isinstance(error, MultiPartException) else error.detail
        raise HeliosError(f"the form cannot be read ({why}); send a whole one.") from None
    except AssertionError:
        message = (
            "forms need python-multipart, which this server lacks; send JSON, or run pip install python-multipart."
        )
        raise HeliosError(message) from None
    return {name: value if isinstance(value, str) else await value.read() for name, value in form.items()}


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 429 else "rate_limit_error"
    content = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return JSONResponse(content, status, dict(headers or {}))
