"""What the graph alone shows to be wrong, found in validation: before anything is loaded, encoded or sampled.

A check speaks up where it is sure, and says nothing of what only running the graph would tell. The nodes check all of
it again when they run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import is_link

from ...helios_core.checkpoint import open_transformer
from ...helios_core.errors import HeliosError, shortened
from ...helios_core.samplers import ChunkSampler
from ...helios_core.take.history import check_size
from ...helios_core.take.history_file import load_history
from ...helios_core.take.prompts import PromptSchedule, parse_schedule
from ...helios_core.take.reference import NoiseRange
from ...helios_core.variants import LATENT_CHANNELS, LATENT_SCALE, PIXELS_PER_TOKEN, RELEASED_SIZE
from .history_paths import history_path
from .model import check_fits, check_latent_shape
from .model_files import TINY_NAMES, TINY_PREFIX, check_installed, check_prefix, resolve
from .prompt_graph import Wired, node_in_validation
from .sampler import check_variant, foreign_sampler
from .sampler_settings import base_settings, dmd_settings, pyramid_settings
from .schedule import starts_of_rows
from .sockets import input_names
from .takes import check_batch
from .whole_models import check_whole, model_of

FILM_NODES = {"HeliosRenderVideo", "HeliosLiveVideo"}
CHUNK_NODES = {"HeliosSampleChunk", "HeliosChunkChain", *FILM_NODES}
BEGINNINGS = {"HeliosEmptyHistory", "HeliosImageHistory", "HeliosVideoHistory"}
APPLY = "HeliosApplyHistory"
# Core's sampler nodes, none of which makes a chunk.
CORE_SAMPLER = "KSamplerSelect"
# Settings of each sampler node by name and type.
_PYRAMID = {"steps": str, "stage_range": str, "gamma": str}
SAMPLERS: dict[str, tuple[Callable[..., ChunkSampler], dict[str, type]]] = {
    "HeliosBaseSampler": (base_settings, {"steps": int, "solver": str}),
    "HeliosPyramidSampler": (
        pyramid_settings,
        {**_PYRAMID, "solver": str, "cfg_zero_star": bool, "zero_init": bool, "zero_steps": int},
    ),
    "HeliosDMDSampler": (dmd_settings, {**_PYRAMID, "amplify_first_chunk": bool}),
}


@dataclass(frozen=True)
class Beginning:
    """What is known of a history: None is what is not."""

    width: int | None
    height: int | None
    batch: int | None


def validated(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, whose validation also refuses links of inputs that it does not declare.

    Core does not look at these, follows them all the same, and ends its queue for good where one leads nowhere; where
    it leads somewhere, the node is called with an argument that it has not.
    """
    own = vars(node).get("validate_inputs", classmethod(lambda cls: True)).__func__

    def validate_inputs(cls: type[io.ComfyNode], **values: Any) -> bool | str:
        wired = node_in_validation()
        for name, value in wired.inputs.items() if wired is not None else ():
            if is_link(value) and name not in names:
                raise HeliosError(f"{shortened(name)} is linked, but {wired.kind} has no such input; remove the link.")
        return own(cls, **values)

    names = input_names(node)
    # Core goes by the names of the arguments: which values it hands over, and which it does not check itself.
    validate_inputs.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    node.validate_inputs = classmethod(validate_inputs)  # type: ignore[method-assign, assignment]
    return node


def check_node() -> bool:
    """True; for ``validate_inputs`` of a node, which core reports a raised error of once and under no other input.

    Raises:
        HeliosError: the node cannot run as it stands in the graph.
    """
    node = node_in_validation()
    if node is not None and node.kind in CHECKS:
        CHECKS[node.kind](node)
    return True


def _check_sampler(node: Wired) -> None:
    _settings(node)


def _settings(node: Wired) -> ChunkSampler | None:
    """The sampler that a sampler node makes.

    Raises:
        HeliosError: it makes none.
    """
    make, kinds = SAMPLERS[node.kind]
    given = {name: node.value(name, kind) for name, kind in kinds.items() if name in node.inputs}
    return None if None in given.values() else make(**given)


def _check_beginning(node: Wired) -> None:
    begun, whole = _beginning(node), PIXELS_PER_TOKEN
    check_size(begun.width or whole, begun.height or whole, whole)
    released = NoiseRange()
    low, high = node.value("noise_sigma_min", float, released.low), node.value("noise_sigma_max", float, released.high)
    # Each within its own limits, which core looks after; an error raised here would hide what core says.
    if low is not None and high is not None and 0 <= low <= 1 and 0 <= high <= 1:
        NoiseRange(low, high)


def _beginning(node: Wired) -> Beginning:
    batch = node.value("batch_size", int, 1)
    return Beginning(_side(node, "width", 0), _side(node, "height", 1), batch)


def _side(node: Wired, name: str, index: int) -> int | None:
    """Width (0) or height (1), typed in or linked to the model's own."""
    origin = node.source(name)
    if origin is not None and origin[0].kind == "HeliosLoadModel":
        choice = origin[0].value("model", str)
        return None if choice is None or check_whole(choice) else model_of(choice).size[index]
    return node.value(name, int, RELEASED_SIZE[index])


def _check_chunk(node: Wired) -> None:
    """Sampler, model and history of a chunk node, against each other."""
    # Past Helios End Frame, which has a sampler input of its own.
    origins = [origin for origin, _ in node.upstream("sampler")]
    if any(origin.kind == CORE_SAMPLER for origin in origins):
        raise foreign_sampler("KSAMPLER")
    settings = next((_quietly(_settings, origin) for origin in origins if origin.kind in SAMPLERS), None)
    variant = _variant(node)
    if settings is not None and variant is not None:
        check_variant(variant, settings.variant)
    begun = _history(node)
    if begun is None:
        return
    if node.kind in FILM_NODES and begun.batch is not None:
        check_batch(begun.batch)
    # A size that nothing divides is told at its own node.
    known = begun.width is not None and begun.height is not None
    if settings is not None and known and not (begun.width % PIXELS_PER_TOKEN or begun.height % PIXELS_PER_TOKEN):
        check_size(begun.width, begun.height, settings.size_multiple)


def _variant(node: Wired) -> str | None:
    """The variant of the model that reaches a chunk node, past LoRA, compile and other nodes with a ``model`` input."""
    for origin, slot in node.upstream("model"):
        choice = origin.value("model", str)
        if origin.kind == "HeliosLoadModel" and slot == 0 and choice is not None:
            return None if check_whole(choice) else model_of(choice).variant
        if origin.kind == "HeliosModelLoader" and choice is not None:
            given = origin.value("variant", str, "auto")
            return _quietly(_variant_of_file, choice, None if given == "auto" else given)
    return None


def _variant_of_file(choice: str, given: str | None) -> str | None:
    if choice in TINY_NAMES:
        return choice.removeprefix(TINY_PREFIX)
    kind = "diffusion_models"
    return None if check_installed(choice, kind) else open_transformer(resolve(choice, kind), given).variant


def _history(node: Wired) -> Beginning | None:
    """Where the film began that a chunk node goes on with."""
    for origin, _ in node.upstream("history"):
        if origin.kind in BEGINNINGS:
            return _beginning(origin)
        if origin.kind == "HeliosLoadHistory":
            return _quietly(_saved, origin.value("file", str))
    return None


def _saved(file: str | None) -> Beginning | None:
    """What a saved history says of itself."""
    if file is None:
        return None
    history = load_history(history_path(file))
    return Beginning(history.width, history.height, history.latents.shape[0])


def _check_schedule(node: Wired) -> None:
    text = node.value("first_chunks", str)
    rows = [name for name in node.inputs if name.startswith("rows.") and node.source(name) is not None]
    if text is None or not rows:
        return
    starts = starts_of_rows(text, len(rows))
    if "before" not in node.inputs:
        PromptSchedule(tuple((start, "") for start in starts), 0)


def _check_schedule_text(node: Wired) -> None:
    text = node.value("text", str)
    if text is not None:
        PromptSchedule(tuple(parse_schedule(text)), 0)


def _check_render(node: Wired) -> None:
    _check_prefix(node)
    _check_chunk(node)


def _check_live(node: Wired) -> None:
    _check_schedule_text(node)
    _check_render(node)


def _check_core_samplers(node: Wired) -> None:
    """Latents that core's samplers are given beside a history or a model of this pack."""
    begun = _history(node) if node.kind == APPLY else None
    if node.kind != APPLY and any(other.kind == APPLY for other in node.all_nodes()):
        return  # that node tells it
    direct = node.consumers()
    # A guider stands between conditioning and SamplerCustomAdvanced.
    for sampler in {found.id: found for one in direct for found in (one, *one.consumers())}.values():
        shape = _empty_latent(sampler)
        if shape is None:
            continue
        check_latent_shape(shape)
        if begun is not None and begun.width and begun.height and begun.batch:
            check_fits(shape, begun.width, begun.height, begun.batch)


def _empty_latent(sampler: Wired) -> tuple[int, ...] | None:
    """The shape that core's Empty HunyuanVideo Latent gives a sampler, the one for this kind of VAE."""
    origin = sampler.source("latent_image")
    if origin is None or origin[0].kind != "EmptyHunyuanLatentVideo":
        return None
    names = ("batch_size", "length", "height", "width")
    batch, length, height, width = (origin[0].value(name, int, 1) for name in names)
    if batch is None or length is None or height is None or width is None:
        return None
    return (batch, LATENT_CHANNELS, (length - 1) // 4 + 1, height // LATENT_SCALE, width // LATENT_SCALE)


def _check_prefix(node: Wired) -> None:
    prefix = node.value("filename_prefix", str)
    if prefix is not None:
        check_prefix(prefix)


def _quietly(find: Callable[..., Any], *arguments: Any) -> Any:
    """What ``find`` returns; None where the node that it looks at has an error of its own, which that node reports."""
    try:
        return find(*arguments)
    except HeliosError:
        return None


CHECKS: dict[str, Callable[[Wired], None]] = {
    **dict.fromkeys(SAMPLERS, _check_sampler),
    **dict.fromkeys(BEGINNINGS, _check_beginning),
    **dict.fromkeys(CHUNK_NODES, _check_chunk),
    "HeliosRenderVideo": _check_render,
    "HeliosLiveVideo": _check_live,
    **dict.fromkeys((APPLY, "HeliosModelLoader", "HeliosLoadModel"), _check_core_samplers),
    **dict.fromkeys(("HeliosJoinVideos", "HeliosProcessVideo", "HeliosFarmRender"), _check_prefix),
    "HeliosPromptSchedule": _check_schedule,
    "HeliosPromptScheduleText": _check_schedule_text,
}
