"""The pack's nodes: thin V3 adapters between ``helios_core`` and ComfyUI's own types."""

from comfy_api.latest import ComfyExtension, io

from .chunks import HeliosChunkChain, HeliosDecode, HeliosSampleChunk
from .history import HeliosApplyHistory, HeliosEmptyHistory
from .loaders import HeliosModelLoader, HeliosTextEncoderLoader, HeliosVAELoader
from .samplers import HeliosDMDSampler


class HeliosExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            HeliosModelLoader,
            HeliosTextEncoderLoader,
            HeliosVAELoader,
            HeliosEmptyHistory,
            HeliosApplyHistory,
            HeliosDMDSampler,
            HeliosSampleChunk,
            HeliosChunkChain,
            HeliosDecode,
        ]


async def comfy_entrypoint() -> HeliosExtension:
    return HeliosExtension()
