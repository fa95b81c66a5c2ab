"""Every shipped workflow, and image, video, schedule and saved histories through the node path."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helios_core.pipeline import HeliosPipeline
from helios_setup.errors import PromptRejectedError
from helios_setup.examples import CLIP, FRAMES, IMAGE
from helios_setup.paths import API_WORKFLOWS
from helios_setup.server import failure, output_files
from helios_setup.workflow import LENGTHS, fill_workflow, workflow_variant

SIZE = (128, 64)
SEED = 5
REAL_MEDIA = Path(__file__).resolve().parents[3] / "shared" / "media"
WORKFLOWS = sorted(path.stem for path in API_WORKFLOWS.glob("*.json"))
CHUNK_NODES = ("HeliosSampleChunk", "HeliosChunkChain", "HeliosRenderVideo", "HeliosLiveVideo")


def base(comfy) -> Path:
    return comfy.log_file.parent


def quick(name, **changes) -> dict:
    """A shipped workflow on helios-tiny: small, few steps, at most three chunks."""
    graph = json.loads((API_WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    graph = fill_workflow(graph, f"helios-tiny-{workflow_variant(name)}", size=SIZE)
    for node in graph.values():
        inputs = node["inputs"]
        if "steps" in inputs:
            inputs["steps"] = 2 if isinstance(inputs["steps"], int) else "1, 1, 1"
        if "seed" in inputs:
            inputs["seed"] = SEED
        if "first_chunks" in inputs:
            inputs["first_chunks"] = "0, 1, 2"
        for length in inputs.keys() & {*LENGTHS}:
            inputs[length] = changes.get(length, min(2, inputs[length]))
    return graph


@pytest.mark.parametrize("name", WORKFLOWS)
def test_shipped_workflow_runs(comfy, name):
    graph = quick(name)
    # What is made of the film afterwards comes after it.
    video, *_ = output_files(comfy.run(graph), base(comfy) / "output")
    lengths = [n["inputs"] for n in graph.values() if n["class_type"] in CHUNK_NODES]
    chunks = sum(inputs.get("num_chunks", inputs.get("max_chunks", 1)) for inputs in lengths)
    before = FRAMES if name.endswith("v2v") else 0
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == SIZE
        assert sum(1 for _ in container.decode(stream)) == 33 * chunks + before


def test_templates_and_api_workflows_are_twins():
    titles = {path.stem for path in API_WORKFLOWS.parent.glob("*.json")}
    assert len(titles) == len(WORKFLOWS)
    assert all((API_WORKFLOWS.parent / f"{title}.jpg").is_file() for title in titles)


@pytest.mark.parametrize(("task", "file"), [("i2v", "car_frame0.png"), ("v2v", "car.mp4")])
def test_real_media(comfy, task, file):
    """A real picture and a real clip; the clip's own frames come first in the finished file."""
    source = REAL_MEDIA / file
    if not source.is_file():
        pytest.skip(f"needs the shared media file {file}")
    (base(comfy) / "input" / file).write_bytes(source.read_bytes())
    graph = quick(f"helios_distilled_{task}", num_chunks=1)
    loader = graph[find(graph, "LoadImage", "LoadVideo")]["inputs"]
    loader["image" if task == "i2v" else "file"] = file
    (video,) = output_files(comfy.run(graph), base(comfy) / "output")
    with av.open(str(video)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    if task == "i2v":
        assert len(frames) == 33
        return
    with av.open(str(source)) as container:
        clip = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(frames) == len(clip) + 33
    shown = covered(clip[:3]).permute(0, 2, 3, 1).numpy() * 255
    error = np.square(frames[:3].astype(float) - shown).mean()
    assert 10 * np.log10(255**2 / error) > 25, "the source's frames, but for compression"


def covered(frames: np.ndarray) -> torch.Tensor:
    """Frames [F,H,W,3] uint8 cropped at the centre to the video's shape and scaled: [F,3,h,w] in 0..1."""
    width, height = SIZE
    _, h, w, _ = frames.shape
    across, down = min(w, round(h * width / height)), min(h, round(w * height / width))
    x, y = (w - across) // 2, (h - down) // 2
    clip = torch.from_numpy(frames[:, y : y + down, x : x + across]).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.interpolate(clip, size=(height, width), mode="bilinear")


def find(graph, *kinds) -> str:
    return next(key for key, node in graph.items() if node["class_type"] in kinds)


def saved_latents(comfy, graph, source=None, **extra) -> torch.Tensor:
    """Runs ``graph`` up to the latent of ``source`` (its chain by default) and reads it back."""
    source = source or find(graph, "HeliosChunkChain")
    ends = ("HeliosDecode", "CreateVideo", "SaveVideo", "BatchImagesNode")
    cut = {key: node for key, node in graph.items() if node["class_type"] not in ends}
    cut["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": [source, 0], "filename_prefix": "test/latent"}}
    item = next(iter(comfy.run(cut | extra)["outputs"]["latent"].values()))[0]
    return load_file(base(comfy) / "output" / item["subfolder"] / item["filename"])["latent_tensor"]


@pytest.mark.parametrize("variant", ["base", "mid", "distilled"])
@pytest.mark.parametrize("task", ["i2v", "v2v"])
def test_node_path_gives_the_headless_latents(comfy, tiny_folder, variant, task):
    name = f"helios_{variant}_{task}"
    graph = quick(name)
    prompts = [node["inputs"]["text"] for node in graph.values() if node["class_type"] == "CLIPTextEncode"]
    with av.open(str(base(comfy) / "input" / (IMAGE if task == "i2v" else CLIP))) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    given = {"image" if task == "i2v" else "video": covered(np.stack(decoded))}
    pipeline = HeliosPipeline.from_pretrained(tiny_folder(variant))
    expected = pipeline(
        prompts[0],
        prompts[1] or None,
        width=SIZE[0],
        height=SIZE[1],
        num_frames=66,
        num_inference_steps=2,
        pyramid_num_inference_steps_list=[1, 1, 1],
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        **given,
    ).latents
    result = pipeline.vae.normalise(saved_latents(comfy, graph))
    # A video's pixels pass core's own colour conversion on their way in.
    assert (result - expected).abs().max() <= (1e-4 if task == "i2v" else 2e-2)


def test_schedule_changes_only_later_chunks(comfy):
    graph = quick("helios_distilled_interactive", num_chunks=4)
    schedule = graph[find(graph, "HeliosPromptSchedule")]["inputs"]
    schedule.update(first_chunks="0, 2, 3", blend=0)
    before = saved_latents(comfy, graph)
    graph[schedule["rows.row_2"][0]]["inputs"]["text"] = "a rainbow over a calm sea"
    after = saved_latents(comfy, graph)
    assert torch.equal(before[:, :, :27], after[:, :, :27])
    assert not torch.equal(before[:, :, 27:], after[:, :, 27:])


def test_text_schedule_equals_the_node_schedule(comfy):
    graph = quick("helios_distilled_interactive", num_chunks=3)
    key = find(graph, "HeliosPromptSchedule")
    inputs = graph[key]["inputs"]
    rows = [graph[inputs[f"rows.row_{i}"][0]]["inputs"]["text"] for i in range(3)]
    expected = saved_latents(comfy, graph)
    text = " / ".join(f"{i}: {row}" for i, row in enumerate(rows))
    clip = graph[inputs["rows.row_0"][0]]["inputs"]["clip"]
    graph[key] = {"class_type": "HeliosPromptScheduleText", "inputs": {"clip": clip, "text": text, "blend": 3}}
    assert torch.equal(saved_latents(comfy, graph), expected)


def test_saved_history_continues_bit_for_bit_in_another_process(comfy, new_comfy):
    whole = saved_latents(comfy, quick("helios_distilled_t2v", num_chunks=3))
    graph = quick("helios_distilled_t2v", num_chunks=2)
    chain = find(graph, "HeliosChunkChain")
    save = {"class_type": "HeliosSaveHistory", "inputs": {"history": [chain, 1], "filename_prefix": "take"}}
    saved_latents(comfy, graph, save=save)
    (file,) = (base(comfy) / "output").glob("take_*.safetensors")

    other = new_comfy(arguments=("--cpu", "--force-fp32", "--fp32-text-enc"))
    (base(other) / "input" / file.name).write_bytes(file.read_bytes())
    graph = quick("helios_distilled_t2v", num_chunks=1)
    graph[find(graph, "HeliosEmptyHistory")] = {"class_type": "HeliosLoadHistory", "inputs": {"file": file.name}}
    assert torch.equal(saved_latents(other, graph), whole[:, :, 18:])


def test_batched_guidance_equals_separate_guidance(comfy, tiny_folder):
    """Core evaluates cond and uncond of both videos in one call, the headless loop one after the other."""
    graph = quick("helios_mid_t2v", num_chunks=1)
    graph[find(graph, "HeliosEmptyHistory")]["inputs"]["batch_size"] = 2
    prompt, negative = (n["inputs"]["text"] for n in graph.values() if n["class_type"] == "CLIPTextEncode")
    pipeline = HeliosPipeline.from_pretrained(tiny_folder("mid"))
    expected = pipeline(
        [prompt, prompt],
        negative,
        width=SIZE[0],
        height=SIZE[1],
        num_frames=33,
        pyramid_num_inference_steps_list=[1, 1, 1],
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).latents
    result = pipeline.vae.normalise(saved_latents(comfy, graph))
    assert not torch.allclose(result[0], result[1], atol=1e-2)
    assert (result - expected).abs().max() <= 1e-4


def refused(comfy, graph) -> str:
    try:
        return failure(comfy.wait(comfy.queue(graph)))
    except PromptRejectedError as error:
        return str(error)


@pytest.mark.parametrize(
    ("name", "kind", "changes", "message"),
    [
        ("helios_distilled_v2v", "HeliosVideoHistory", {"video": ["short", 0]}, "video has 20 frames"),
        ("helios_distilled_v2v", "HeliosVideoHistory", {"video": ["fast", 0]}, "video has 25 frames"),
        ("helios_distilled_i2v", "HeliosImageHistory", {"noise_sigma_min": 0.5}, "noise sigma range 0.5 to 0.135"),
        ("helios_distilled_interactive", "HeliosPromptSchedule", {"first_chunks": "0, 9, 7"}, "row at chunk 7 follows"),
        ("helios_distilled_interactive", "HeliosPromptSchedule", {"first_chunks": "0, 7"}, "has 2 numbers for 3 rows"),
        ("helios_distilled_interactive", "HeliosPromptSchedule", {"first_chunks": "0, x, 7"}, "not a list of chunk"),
        ("helios_base_t2v", "HeliosLoadModel", {"model": "helios-tiny-distilled"}, "sampler is for base"),
        ("helios_mid_t2v", "HeliosPyramidSampler", {"steps": "3, 3"}, "give 3 numbers"),
        ("helios_mid_t2v", "HeliosPyramidSampler", {"steps": "3, 3", "stage_range": "0, 0.5, 1"}, None),
        ("helios_mid_t2v", "HeliosPyramidSampler", {"stage_range": "0, 1"}, "does not fit stages=3"),
        ("helios_mid_t2v", "HeliosPyramidSampler", {"steps": "a, b"}, "is not a list of numbers"),
        (
            "helios_mid_t2v",
            "HeliosPyramidSampler",
            {"steps": "1, 1, 1, 1", "stage_range": "0, 0.25, 0.5, 0.75, 1"},
            "use 128",
        ),
        ("helios_mid_t2v", "HeliosPyramidSampler", {"gamma": "1/0"}, "gamma='1/0' is not a number"),
        ("helios_mid_t2v", "HeliosPyramidSampler", {"gamma": "0.5"}, "at most 1/3"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(comfy, name, kind, changes, message):
    graph = quick(name)
    graph["short"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 20, "color": 0}}
    graph["many"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 63, "color": 0}}
    graph["fast"] = {"class_type": "CreateVideo", "inputs": {"images": ["many", 0], "fps": 60}}
    graph[find(graph, kind)]["inputs"].update(changes)
    told = refused(comfy, graph)
    if message is None:
        assert told is None, "two stages are allowed where their bounds are given"
    else:
        assert message in told and "\n" not in told.strip()


@pytest.mark.parametrize("file", ["../../etc/passwd.safetensors", "absent.safetensors", "example.png"])
def test_history_files_outside_the_folders_are_refused(comfy, file):
    graph = quick("helios_distilled_t2v")
    graph[find(graph, "HeliosEmptyHistory")] = {"class_type": "HeliosLoadHistory", "inputs": {"file": file}}
    assert "does not exist" in (told := refused(comfy, graph)) or "not a .safetensors file within" in told


def test_a_history_is_not_saved_outside_the_output_folder(comfy):
    graph = quick("helios_distilled_t2v")
    inputs = {"history": [find(graph, "HeliosEmptyHistory"), 0], "filename_prefix": "../outside"}
    graph["save"] = {"class_type": "HeliosSaveHistory", "inputs": inputs}
    assert "is not a name within the output folder" in refused(comfy, graph)
