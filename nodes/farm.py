"""Helios Farm Render: films on the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import InputImpl, io, ui

from ..helios_core.distributed.jobs import BadRow, Job, job_of
from ..helios_core.errors import HeliosError
from ..helios_core.take.take import name_for
from ..helios_core.variants import DEFAULT, RELEASED_SIZE
from ..helios_core.video.remux import finish_video
from .adapters.farm import cluster_address, farm_model, farm_models, farmed, gpus_per_film
from .adapters.graph_checks import check_node
from .adapters.takes import output_store, seed_changes_input
from .chunks import num_chunks_input
from .history import seed_input, size_inputs
from .live.farm import FarmFeeds
from .render import Target, file_inputs, file_metadata, fps_input

SEPARATOR = "---"
FILMS = "farm"


class HeliosFarmRender(io.ComfyNode):
    """Renders films on the workers of a Ray cluster, one or many at a time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosFarmRender",
            display_name="Helios Farm Render",
            category="Helios/video",
            description="Renders a film, or one of each of several prompts, on the machines of a Ray cluster, which "
            "the server's environment names (HELIOS_RAY_ADDRESS), never a workflow. Chunks show in the strip as they "
            "come and are kept in the store, so that a stopped farm goes on where it was.",
            search_aliases=["helios ray", "helios cluster", "helios batch", "many prompts"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "prompts",
                    multiline=True,
                    tooltip="What the film shows: a prompt, or a schedule like '0: a boat / 7: a storm'. A line of --- "
                    "begins another film.",
                ),
                io.Combo.Input(
                    "model",
                    options=farm_models(),
                    default=DEFAULT.folder,
                    tooltip="A model by name. A folder on this machine must be one that all workers see; a released "
                    "one that is not here comes from each machine's Hugging Face cache.",
                ),
                *size_inputs(),
                num_chunks_input(),
                seed_input("The same seed gives the same video; all films of the node have it."),
                fps_input("Helios was trained on 24."),
                *file_inputs("video/Helios_farm")[1:],
                seed_changes_input(),
            ],
            outputs=[
                io.Video.Output(
                    display_name="videos",
                    is_output_list=True,
                    tooltip="The files on disk, one a prompt; what is behind runs once for each.",
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None = None) -> bool | str:
        """Takes ``prompts``, which core checks no further, because core shows a returned sentence beside an input."""
        try:
            cluster_address()
            gpus_per_film()
        except HeliosError as error:
            return str(error)  # raised, it would hide what is wrong with the inputs
        return check_node()

    @classmethod
    def execute(
        cls,
        prompts: str,
        model: str,
        num_chunks: int,
        seed: int,
        width: int = RELEASED_SIZE[0],
        height: int = RELEASED_SIZE[1],
        fps: float = 24.0,
        quality: int = 18,
        filename_prefix: str = "video/Helios_farm",
        seed_changes: str = "",
    ) -> io.NodeOutput:
        address, store = cluster_address(), output_store()
        target = Target(filename_prefix, width, height)
        usual = {"model": farm_model(model), "width": width, "height": height, "chunks": num_chunks, "seed": seed}
        usual |= {"fps": fps, "crf": quality, "seed_changes": seed_changes}
        rows = film_rows(prompts, usual, target.name)
        jobs = {row["id"]: usable_job(row) for row in rows}
        found: dict[str, Path] = {}
        failed: list[str] = []
        events = farmed(rows, store.folder / FILMS, store.folder, address)
        with contextlib.closing(events), FarmFeeds(jobs, cls.hidden, store) as feeds:

            def publish(name: str) -> None:
                film = store.folder / FILMS / f"{name}.mp4"
                found[name] = _published(film, target, file_metadata(cls.hidden))
                feeds.finished(name, found[name])

            for event in events:
                name = event.get("id")
                if event["event"] == "film" and event["status"] == "finished":
                    publish(name)
                elif event["event"] in ("film", "bad_row"):
                    failed.append(event["message"])
                    feeds.failed(name, event["message"])
                else:
                    feeds.tell(event)
            # What an earlier run made that broke off before it was published: the farm tells no film of it.
            for name in jobs:
                if name not in found:
                    publish(name)
        paths = [found[name] for name in jobs]
        saved = [ui.SavedResult(path.name, target.subfolder, io.FolderType.output) for path in paths]
        return io.NodeOutput([InputImpl.VideoFromFile(str(path)) for path in paths], ui=ui.PreviewVideo(saved))


def film_rows(prompts: str, usual: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A farm's table: a row for each of the texts between lines of ``---``, named by all that is in it."""
    texts = [text.strip() for text in f"\n{prompts}\n".split(f"\n{SEPARATOR}\n")]
    rows = [{**usual, "prompt_schedule": text} for text in texts if text]
    if not rows:
        raise HeliosError("prompts is empty; write what the film shows.")
    keys = [usable_job({**row, "id": "film"}).key(row["model"])[:8] for row in rows]
    if len(set(keys)) < len(keys):
        raise HeliosError("prompts has the same film twice; change one, or leave it out.")
    return [{**row, "id": name_for(name, f"-{key}")} for row, key in zip(rows, keys, strict=True)]


def usable_job(row: Mapping[str, Any]) -> Job:
    """The row as a job. Raises HeliosError where it is none."""
    cells = {name: str(value) for name, value in row.items() if str(value)}
    job = job_of(cells, 1, Path(), {}, lambda _: RELEASED_SIZE)
    if isinstance(job, BadRow):
        raise HeliosError(job.message)
    return job


def _published(film: Path, target: Target, metadata: Mapping[str, Any]) -> Path:
    """The film with the workflow in it, in the output folder; nothing of it stays where the farm left it."""
    finished = film.with_name(f".{film.stem}.part.mp4")
    try:
        finish_video(film, finished, None, metadata)
        path = target.publish(finished)
    finally:
        finished.unlink(missing_ok=True)  # its name alone: the published one is a link
    film.unlink()
    return path
