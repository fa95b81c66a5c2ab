"""The pack's nodes: thin V3 adapters between ``helios_core`` and ComfyUI's own types."""

from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from .adapters.graph_checks import validated
from .adapters.prompt_graph import keep_prompt
from .adapters.sockets import checked
from .chunks import HeliosChunkChain, HeliosDecode, HeliosSampleChunk
from .cutting import HeliosChunkFrames, HeliosSplitVideo
from .download import HeliosDownloadModel
from .drift import HeliosDriftReport
from .farm import HeliosFarmRender
from .history import HeliosApplyHistory, HeliosEmptyHistory
from .history_files import HeliosLoadHistory, HeliosSaveHistory
from .join import HeliosJoinVideos
from .live.direct_routes import register_direct_routes
from .live.model_routes import register_model_routes
from .live.routes import register_routes
from .live.stream import register_stream_routes
from .live_video import HeliosLiveVideo
from .loaders import HeliosLoadModel, HeliosModelLoader, HeliosTextEncoderLoader, HeliosVAELoader
from .lora import HeliosLoraLoader
from .process import HeliosProcessVideo
from .prompts import HeliosPromptSchedule, HeliosPromptScheduleText
from .reference_histories import HeliosImageHistory, HeliosVideoHistory
from .render import HeliosRenderVideo
from .samplers import HeliosBaseSampler, HeliosDMDSampler, HeliosPyramidSampler
from .steering import HeliosAnchorHistory, HeliosAntiDrift, HeliosColourAnchor, HeliosEndFrame, HeliosLatentColourAnchor


class HeliosExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_stream_routes(PromptServer.instance)
        register_routes(PromptServer.instance)
        register_direct_routes(PromptServer.instance)
        register_model_routes(PromptServer.instance)
        PromptServer.instance.add_on_prompt_handler(keep_prompt)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [
            HeliosLoadModel,
            HeliosModelLoader,
            HeliosTextEncoderLoader,
            HeliosVAELoader,
            HeliosLoraLoader,
            HeliosDownloadModel,
            HeliosEmptyHistory,
            HeliosImageHistory,
            HeliosVideoHistory,
            HeliosApplyHistory,
            HeliosSaveHistory,
            HeliosLoadHistory,
            HeliosPromptSchedule,
            HeliosPromptScheduleText,
            HeliosBaseSampler,
            HeliosPyramidSampler,
            HeliosDMDSampler,
            HeliosSampleChunk,
            HeliosChunkChain,
            HeliosDecode,
            HeliosRenderVideo,
            HeliosLiveVideo,
            HeliosJoinVideos,
            HeliosDriftReport,
            HeliosAntiDrift,
            HeliosAnchorHistory,
            HeliosEndFrame,
            HeliosColourAnchor,
            HeliosLatentColourAnchor,
            HeliosChunkFrames,
            HeliosSplitVideo,
            HeliosProcessVideo,
            HeliosFarmRender,
        ]
        return [validated(checked(node)) for node in nodes]


async def comfy_entrypoint() -> HeliosExtension:
    return HeliosExtension()
