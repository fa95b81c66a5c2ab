"""Routes of Helios Load Model: what each choice loads, what is missing, and downloads.

- ``GET /helios/models``: ``{"models": {choice: model}, "downloads": {variant: state}}``; a model is
  ``{name, variant, size, missing, wanted}``, where ``wanted`` is null, or ``{folder, variant, missing, bytes}`` of the
  released folder that could be downloaded.
- ``POST /helios/models/{variant}/download`` and ``.../stop`` start and stop a download; both answer with its state.
  An unknown variant answers 400 with ``{"error": sentence}``.

States are those of ``downloads.py``; they also come as the websocket event ``helios.download``.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from aiohttp import web

from ...helios_core.variants import VARIANTS
from ..adapters.whole_models import WholeModel, choices, lacking, model_of
from .downloads import Downloads
from .routes import GONE, refused

# Of a released folder, float32 as released; computed from the shapes.
RELEASED_BYTES = 80_500_000_000


class ModelRoutes:
    """Handlers; folders are looked at anew for every request."""

    def __init__(self) -> None:
        self._downloads = Downloads()

    def register(self, routes: web.RouteTableDef) -> None:
        routes.get("/helios/models")(self.models)
        routes.post("/helios/models/{variant}/download")(self.download)
        routes.post("/helios/models/{variant}/stop")(self.stop)

    async def models(self, _: web.Request) -> web.Response:
        models = await asyncio.to_thread(described)
        return web.json_response({"models": models, "downloads": self._downloads.states()}, headers=GONE)

    async def download(self, request: web.Request) -> web.Response:
        variant = request.match_info["variant"]
        return web.json_response(self._downloads.start(variant)) if variant in VARIANTS else _unknown(variant)

    async def stop(self, request: web.Request) -> web.Response:
        variant = request.match_info["variant"]
        if variant not in VARIANTS:
            return _unknown(variant)
        self._downloads.stop(variant)
        return web.json_response(self._downloads.states().get(variant, {}))


def described() -> dict[str, dict[str, Any]]:
    """Every choice of Helios Load Model."""
    return {choice: _entry(model_of(choice)) for choice in choices()}


def _entry(model: WholeModel) -> dict[str, Any]:
    entry = asdict(model)
    if model.wanted is not None:
        variant = next(name for name, variant in VARIANTS.items() if variant.folder == model.wanted)
        entry["wanted"] = {
            "folder": model.wanted,
            "variant": variant,
            "missing": lacking(model.wanted),
            "bytes": RELEASED_BYTES,
        }
    return entry


def _unknown(variant: str) -> web.Response:
    return refused(f"variant {variant!r:.80} is unknown; use one of {', '.join(VARIANTS)}.")


def register_model_routes(server: Any) -> None:
    """Adds the routes to core's server; once, while it loads the pack."""
    ModelRoutes().register(server.routes)
