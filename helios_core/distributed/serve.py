"""The service's entry: ``serve run helios_core.distributed.serve:app model=FOLDER output=FOLDER``.

``serve`` imports this file by name and nothing else does: it brings the service and the pipeline together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..commands.embedded import embedded
from ..commands.renderer import PipelineRenderer, model_size
from ..errors import HeliosError, shortened
from ..networks.settings import as_number
from ..take.store import FOLDER_NAME
from ..variants import DEFAULT
from .farm import require_ray
from .farm_worker import FarmFolder, Renderer, code_version
from .members import STRATEGY

TOKEN_VARIABLE = "HELIOS_SERVE_TOKEN"
DEFAULTS = {"output": "helios_videos", "replicas": "1", "queue": "16", "gpus_per_film": "1", "device": "", "dtype": ""}


def app(arguments: Mapping[str, str]) -> Any:
    """The Serve application.

    Arguments, as ``name=value`` behind ``serve run``: ``model``, a folder, a model of the pack or a repository in the
    hub's cache, several by commas, the first for requests that name none; ``output``, where films and the store go,
    which all machines must see; ``replicas``, films at a time; ``queue``, films that wait or are made at most;
    ``gpus_per_film`` of one machine, which make each film together; ``device`` and ``dtype``. The environment variable
    HELIOS_SERVE_TOKEN, where it is set, is what clients must bear.

    Raises:
        HeliosError: an argument is unknown or wrong.
    """
    unknown = [name for name in arguments if name not in {*DEFAULTS, "model"}]
    if unknown:
        raise HeliosError(f"argument {shortened(unknown[0])} is unknown; use model, {', '.join(DEFAULTS)}.")
    values = {**DEFAULTS, **arguments}
    loading = {name: values[name] for name in ("device", "dtype") if values[name]}
    return application(values, PipelineRenderer(loading, _count(values, "gpus_per_film")))


def application(values: Mapping[str, str], renderer: Renderer, sizes: Any = model_size) -> Any:
    """The application for a renderer; ``values`` as for :func:`app`."""
    ray = require_ray()
    from ray import serve

    from .serve_films import FilmReplica, Service, VideoService

    output = Path(values["output"]).absolute()
    models = [name.strip() for name in values.get("model", embedded(DEFAULT.name).name).split(",")]
    service = Service(
        folder=FarmFolder(output, output / FOLDER_NAME),
        models={Path(name).name if Path(name).is_dir() else name: _absolute(name) for name in models},
        queue=_count(values, "queue"),
        token=os.environ.get(TOKEN_VARIABLE, ""),
    )
    has_gpus = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    each = {"CPU": 1, "GPU": int(has_gpus)}
    several: dict[str, Any] = {
        "placement_group_bundles": [each] * renderer.processes,
        "placement_group_strategy": STRATEGY,
    }
    films = serve.deployment(
        num_replicas=_count(values, "replicas"),
        max_ongoing_requests=1,
        ray_actor_options={"num_cpus": each["CPU"], "num_gpus": each["GPU"]},
        **(several if renderer.processes > 1 else {}),
    )(FilmReplica).bind(renderer, code_version())
    front = serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})(VideoService)
    return front.bind(films, renderer, sizes, service)


def _absolute(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _count(values: Mapping[str, str], name: str) -> int:
    text = values[name]
    number = as_number(int(text)) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if number < 1:
        raise HeliosError(f"{name}={shortened(text)} is no whole number of at least 1.")
    return int(number)
