"""The drift report's aesthetic score: core's CLIP and LAION's heads against transformers and torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from helios_core.video.drift.report import ABSENT

ROOT = Path(__file__).resolve().parents[2]
# As many layers as ViT-L/14, by which core tells CLIPs apart; all else is small.
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 24, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14, "hidden_act": "quick_gelu"}  # fmt: skip
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
WIDTH = 24
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
tree, pack, config, frames, *folders = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--fp32-text-enc"]
sys.path.insert(0, tree)
import comfy.options
comfy.options.enable_args_parsing()
import comfy.clip_vision, folder_paths
import numpy as np
made = comfy.clip_vision.ClipVisionModel
# Core picks one of its own, larger configurations by the number of layers.
comfy.clip_vision.ClipVisionModel = lambda _: made(json.loads(config))
spec = importlib.util.spec_from_file_location("helios_pack", Path(pack) / "__init__.py",
                                              submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["helios_pack"] = module
spec.loader.exec_module(module)
from helios_pack.nodes.adapters.aesthetic import installed_scores
found = []
for folder in folders:
    folder_paths.folder_names_and_paths["clip_vision"] = ([folder], folder_paths.supported_pt_extensions)
    folder_paths.filename_list_cache.clear()
    scores = installed_scores()
    measured = scores.scorer and [scores.scorer(frame)["aesthetic"] for frame in np.load(frames)]
    found.append([measured, dict(scores.absent)])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=WIDTH)
    return CLIPModel(config).eval()


def heads() -> dict[str, torch.nn.Module]:
    """LAION's two kinds, by their files' names."""

    class Version2(torch.nn.Module):
        def __init__(self):
            super().__init__()
            linear, dropout = torch.nn.Linear, torch.nn.Dropout
            self.layers = torch.nn.Sequential(
                linear(WIDTH, 20), dropout(0.2), linear(20, 8), dropout(0.2), linear(8, 4), linear(4, 1)
            )

        def forward(self, x):
            return self.layers(x)

    torch.manual_seed(1)
    return {"sa_0_4_vit_l_14_linear.pth": torch.nn.Linear(WIDTH, 1).eval(),
            "sac+logos+ava1-l14-linearMSE.pth": Version2().eval()}  # fmt: skip


def expected(clip: CLIPModel, head: torch.nn.Module, frames: np.ndarray) -> list[float]:
    pixels = (torch.from_numpy(frames).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        seen = clip.vision_model(pixels.permute(0, 3, 1, 2)).pooler_output
        features = clip.visual_projection(seen)
        return head(features / features.norm(dim=-1, keepdim=True)).squeeze(-1).tolist()


def test_scores_are_those_of_transformers_and_what_is_absent_is_said(comfyui_tree, clip, tmp_path):
    both = heads()
    folders = [tmp_path / name for name in ("none", "linear", "mlp", "other", "alone", "damaged")]
    for folder in folders:
        folder.mkdir()
    for folder, (name, head) in zip(folders[1:3], both.items(), strict=True):
        clip.save_pretrained(folder / "clip-vit-large-patch14")
        torch.save(head.state_dict(), folder / name)
    clip.save_pretrained(folders[3])
    save_file({"weight": torch.zeros(1, WIDTH + 1), "bias": torch.zeros(1)}, folders[3] / "head.safetensors")
    clip.save_pretrained(folders[4])
    torch.save(both["sa_0_4_vit_l_14_linear.pth"].state_dict(), folders[5] / "head.pth")
    tensors = {"visual_projection.weight": torch.zeros(WIDTH, 32),
               "vision_model.embeddings.position_embedding.weight": torch.zeros(5, 32)}  # fmt: skip
    save_file(tensors, folders[5] / "clip.safetensors")
    frames = np.random.default_rng(2).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    config = json.dumps({**clip.config.vision_config.to_dict(), "projection_dim": WIDTH, "num_channels": 3})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(comfyui_tree), str(ROOT), config, str(tmp_path / "frames.npy"),
         *map(str, folders)], capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    none, linear, mlp, other, alone, damaged = json.loads(done.stdout.splitlines()[-1])
    for (measured, absent), head in zip((linear, mlp), both.values(), strict=True):
        assert measured == pytest.approx(expected(clip, head, frames), abs=1e-4)
        assert absent == {"semantic": ABSENT["semantic"]}
    assert none == alone == [None, ABSENT]
    assert (
        other[1]["aesthetic"]
        == f"no CLIP in models/clip_vision makes the {WIDTH + 1} numbers that the head there takes"
    )
    assert damaged[0] is None and damaged[1]["aesthetic"].startswith("clip.safetensors cannot be loaded")
