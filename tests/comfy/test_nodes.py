"""The node path in a real ComfyUI, through its HTTP API, from the shipped workflow."""

import copy
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helios_core.pipeline import HeliosPipeline
from helios_setup.errors import PromptRejectedError
from helios_setup.paths import API_WORKFLOWS
from helios_setup.server import failure, output_files

TINY = "helios-tiny-distilled"
WIDTH, HEIGHT, SEED = 128, 64, 5
PROMPT = "a red boat on a quiet lake"
MODEL, TEXT, VAE, POSITIVE, NEGATIVE, HISTORY, SAMPLER, CHAIN, DECODE, VIDEO, SAVE = map(str, range(1, 12))


@pytest.fixture
def graph():
    """The shipped Distilled text-to-video graph on helios-tiny, small, two chunks long, with the three loaders."""
    shipped = json.loads((API_WORKFLOWS / "helios_distilled_t2v.json").read_text(encoding="utf-8"))
    kinds = {MODEL: ("HeliosModelLoader", "model"), TEXT: ("HeliosTextEncoderLoader", "text_encoder"),
             VAE: ("HeliosVAELoader", "vae")}  # fmt: skip
    loaders = {key: {"class_type": kind, "inputs": {name: TINY}} for key, (kind, name) in kinds.items()}
    for node in shipped.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == MODEL:
                node["inputs"][name] = [[MODEL, TEXT, VAE, MODEL, MODEL][value[1]], 0]
    shipped |= loaders
    shipped[POSITIVE]["inputs"]["text"] = PROMPT
    shipped[HISTORY]["inputs"].update(width=WIDTH, height=HEIGHT)
    shipped[CHAIN]["inputs"].update(num_chunks=2, seed=SEED)
    return shipped


def latents_only(graph, source=CHAIN, **changes):
    """The graph cut after ``source``, its latent saved by core's SaveLatent."""
    cut = {key: copy.deepcopy(node) for key, node in graph.items() if key not in (VAE, DECODE, VIDEO, SAVE)}
    cut["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": [source, 0], "filename_prefix": "test/latent"}}
    return cut | changes


def base(comfy) -> Path:
    return comfy.log_file.parent


def saved_latents(comfy, graph) -> torch.Tensor:
    entry = comfy.run(graph)
    item = next(iter(entry["outputs"]["latent"].values()))[0]
    return load_file(base(comfy) / "output" / item["subfolder"] / item["filename"])["latent_tensor"]


def test_shipped_workflow_writes_an_mp4(comfy, graph):
    entry = comfy.run(graph)
    (video,) = output_files(entry, base(comfy) / "output")
    if shutil.which("ffprobe") is None:
        pytest.skip("needs ffprobe (Debian package ffmpeg)")
    fields = "stream=codec_name,width,height,r_frame_rate,nb_read_frames"
    probe = subprocess.run(
        ["ffprobe", "-v", "error", "-count_frames", "-show_entries", fields, "-of", "json", video],
        capture_output=True, check=True,
    )  # fmt: skip
    (stream,) = json.loads(probe.stdout)["streams"]
    assert stream == {
        "codec_name": "h264",
        "width": WIDTH,
        "height": HEIGHT,
        "r_frame_rate": "24/1",
        "nb_read_frames": str(2 * 33),
    }


def test_node_path_gives_the_headless_latents(comfy, graph, tiny_folder):
    pipeline = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    expected = pipeline(
        PROMPT,
        width=WIDTH,
        height=HEIGHT,
        num_frames=66,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).latents
    result = saved_latents(comfy, latents_only(graph))
    assert result.shape == (1, 16, 18, HEIGHT // 8, WIDTH // 8)
    assert (pipeline.vae.normalise(result) - expected).abs().max() <= 1e-4


def hand_chained(graph, **second_inputs):
    """Two Sample Chunk nodes in place of the chain, their latents joined by core."""
    inputs = {k: v for k, v in graph[CHAIN]["inputs"].items() if k != "num_chunks"}
    first = {"class_type": "HeliosSampleChunk", "inputs": inputs}
    second = {"class_type": "HeliosSampleChunk", "inputs": inputs | {"history": ["first", 1]} | second_inputs}
    joined = {"class_type": "LatentConcat", "inputs": {"samples1": ["first", 0], "samples2": ["second", 0], "dim": "t"}}
    chained = latents_only(graph, "joined", first=first, second=second, joined=joined)
    del chained[CHAIN]
    return chained


def test_two_hand_chained_chunks_equal_a_chain_of_two_bit_for_bit(comfy, graph):
    assert torch.equal(saved_latents(comfy, hand_chained(graph)), saved_latents(comfy, latents_only(graph)))


def test_another_seed_rolls_only_the_later_chunk_again(comfy, graph):
    whole = saved_latents(comfy, latents_only(graph))
    rerolled = saved_latents(comfy, hand_chained(graph, seed=SEED + 1))
    assert torch.equal(rerolled[:, :, :9], whole[:, :, :9])
    assert not torch.allclose(rerolled[:, :, 9:], whole[:, :, 9:], atol=1e-2)


def custom_sampler(graph):
    """The graph with core's SamplerCustomAdvanced in place of the chain, its latent saved."""
    nodes = {
        "apply": (
            "HeliosApplyHistory",
            {"positive": [POSITIVE, 0], "negative": [NEGATIVE, 0], "history": [HISTORY, 0]},
        ),
        "guider": ("CFGGuider", {"model": [MODEL, 0], "positive": ["apply", 0], "negative": ["apply", 1], "cfg": 1.0}),
        "noise": ("RandomNoise", {"noise_seed": SEED}),
        "sigmas": ("BasicScheduler", {"model": [MODEL, 0], "scheduler": "simple", "steps": 4, "denoise": 1.0}),
        "empty": ("EmptyHunyuanLatentVideo", {"width": WIDTH, "height": HEIGHT, "length": 33, "batch_size": 1}),
        "advanced": (
            "SamplerCustomAdvanced",
            {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": [SAMPLER, 0], "sigmas": ["sigmas", 0],
             "latent_image": ["empty", 0]},
        ),
    }  # fmt: skip
    core = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    cut = latents_only(graph, "advanced", **core)
    del cut[CHAIN]
    return cut


def test_core_custom_sampler_gives_the_first_chunk(comfy, graph):
    """SamplerCustomAdvanced with HeliosApplyHistory: core draws the noise, our SAMPLER does the rest."""
    graph[CHAIN]["inputs"]["num_chunks"] = 1
    expected = saved_latents(comfy, latents_only(graph))
    assert torch.equal(saved_latents(comfy, custom_sampler(graph)), expected)


def test_core_custom_sampler_refuses_a_latent_of_another_size(comfy, graph):
    cut = custom_sampler(graph)
    cut["empty"]["inputs"]["width"] = 2 * WIDTH
    assert f"but the history is {WIDTH}x{HEIGHT}" in refused(comfy, cut)


def test_guidance_changes_the_video_and_equals_headless(comfy, graph, tiny_folder):
    graph[CHAIN]["inputs"].update(cfg=3.0, num_chunks=1)
    graph[NEGATIVE]["inputs"]["text"] = "blurry"
    pipeline = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    expected = pipeline(
        PROMPT,
        "blurry",
        width=WIDTH,
        height=HEIGHT,
        num_frames=33,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).latents
    result = pipeline.vae.normalise(saved_latents(comfy, latents_only(graph)))
    assert (result - expected).abs().max() <= 1e-4


def lora(graph, comfy, strength):
    torch.manual_seed(0)
    folder = base(comfy) / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name in ("self_attn.q", "cross_attn.k", "ffn.0"):
        out, inner = (96, 48) if name == "ffn.0" else (48, 48)
        weights[f"diffusion_model.blocks.0.{name}.lora_A.weight"] = torch.randn(4, inner)
        weights[f"diffusion_model.blocks.0.{name}.lora_B.weight"] = torch.randn(out, 4) * 0.2
    save_file(weights, folder / "wan_style.safetensors")
    node = {"model": [MODEL, 0], "lora_name": "wan_style.safetensors", "strength_model": strength}
    cut = latents_only(graph, lora={"class_type": "LoraLoaderModelOnly", "inputs": node})
    cut[CHAIN]["inputs"].update(model=["lora", 0], num_chunks=1)
    return cut


def test_core_lora_loader_takes_wan_named_loras(comfy, graph):
    plain, styled = lora(graph, comfy, 0.0), lora(graph, comfy, 1.0)
    before = len(comfy.log())
    assert not torch.allclose(saved_latents(comfy, styled), saved_latents(comfy, plain), atol=1e-2)
    assert "lora key not loaded" not in comfy.log()[before:]


@pytest.mark.slow
def test_core_torch_compile_accepts_the_model(comfy, graph):
    graph[CHAIN]["inputs"]["num_chunks"] = 1
    graph[SAMPLER]["inputs"].update(amplify_first_chunk=False)
    expected = saved_latents(comfy, latents_only(graph))
    node = {"class_type": "TorchCompileModel", "inputs": {"model": [MODEL, 0], "backend": "inductor"}}
    compiled = latents_only(graph, compile=node)
    compiled[CHAIN]["inputs"]["model"] = ["compile", 0]
    assert (saved_latents(comfy, compiled) - expected).abs().max() <= 1e-3


def test_progress_previews_and_interrupt(comfy, graph):
    graph[HISTORY]["inputs"].update(width=192, height=192)
    graph[CHAIN]["inputs"].update(num_chunks=40, seed=77)
    prompt_id = comfy.queue(latents_only(graph))

    def sampling(event):
        nodes = event.data.get("nodes", {}) if event.type == "progress_state" else {}
        return event.prompt_id == prompt_id and nodes.get(CHAIN, {}).get("value", 0) >= 8

    progress = comfy.wait_for_event(sampling).data["nodes"][CHAIN]
    assert progress["max"] == 6 * 40 + 6, "every step of every chunk, chunk 0 amplified"
    comfy.interrupt()
    entry = comfy.wait(prompt_id)
    assert "Interrupted" in failure(entry)
    previews = comfy.events(kind="preview")
    assert previews and previews[-1].image[:2] == b"\xff\xd8", "JPEG previews while sampling"
    comfy.run(latents_only(graph | {CHAIN: small_chain(graph)}))


def small_chain(graph):
    return {"class_type": "HeliosChunkChain", "inputs": graph[CHAIN]["inputs"] | {"num_chunks": 1}}


def refused(comfy, graph) -> str:
    """The message of a graph that must fail; afterwards the server must still serve."""
    try:
        message = failure(comfy.wait(comfy.queue(graph)))
    except PromptRejectedError as error:
        assert error.status == 400
        message = str(error)
    assert comfy.get("/queue")["queue_running"] == []
    return message


@pytest.mark.parametrize(
    ("node", "changes", "message"),
    [
        (MODEL, {"model": "no-such-model"}, "no-such-model"),
        (MODEL, {"model": "Helios-Distilled"}, "Helios-Distilled is not installed: download"),
        (TEXT, {"text_encoder": "Helios-Base"}, "Helios-Base is not installed: download"),
        (MODEL, {"model": "helios-tiny-base"}, "model is Helios base but the sampler is for distilled"),
        (HISTORY, {"width": 100}, "width=100 is not a positive multiple of 16; use 96 or 112"),
        (HISTORY, {"width": 96}, "width=96 is not a positive multiple of 64; use 64 or 128"),
        (CHAIN, {"num_chunks": 0}, "num_chunks"),
        (CHAIN, {"sampler": ["core_sampler", 0]}, "connect a Helios sampler node"),
        (CHAIN, {"model": ["shifted", 0]}, "sampling replaced"),
        (CHAIN, {"positive": ["area", 0]}, "positive uses area"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(comfy, graph, node, changes, message):
    cut = latents_only(
        graph,
        core_sampler={"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        shifted={"class_type": "ModelSamplingSD3", "inputs": {"model": [MODEL, 0], "shift": 5.0}},
        area={
            "class_type": "ConditioningSetArea",
            "inputs": {"conditioning": [POSITIVE, 0], "width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0},
        },
    )
    cut[node]["inputs"].update(changes)
    told = refused(comfy, cut)
    assert message in told
    assert "\n" not in told.strip()


@pytest.fixture
def damaged_folder(comfy, tiny_folder):
    """`damaged_folder(name)`: a copy of helios-tiny to damage; gone after the test, for "distilled" would take it."""
    made = []

    def copy(name) -> Path:
        made.append(base(comfy) / "models" / "diffusers" / name)
        return shutil.copytree(tiny_folder("distilled"), made[-1])

    yield copy
    for folder in made:
        shutil.rmtree(folder)


def test_damaged_and_foreign_checkpoints_are_refused_by_name(comfy, graph, damaged_folder):
    truncated = damaged_folder("truncated")
    shard = truncated / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])

    foreign = damaged_folder("wan")
    for file in (foreign / "transformer").glob("*.safetensors*"):
        file.unlink()
    wan = {"patch_embedding.weight": torch.zeros(48, 16, 1, 2, 2), "blocks.0.self_attn.q.weight": torch.zeros(48, 48)}
    save_file(wan, foreign / "transformer" / "diffusion_pytorch_model.safetensors")

    missing = damaged_folder("missing")
    (missing / "transformer" / shard.name).unlink()

    for name, message in (
        ("truncated", f"{shard.name} is not a complete safetensors file"),
        ("wan", "does not fit a Helios transformer"),
        ("missing", f"{shard.name} is missing"),
    ):
        graph[MODEL]["inputs"]["model"] = name
        assert message in refused(comfy, latents_only(graph))


def test_object_info_explains_every_input(comfy):
    info = {name: node for name, node in comfy.object_info().items() if name.startswith("Helios")}
    assert len(info) >= 18
    for name, node in info.items():
        assert node["display_name"] and node["description"], name
        assert node["category"].startswith("Helios/"), name
        for kind in ("required", "optional"):
            for key, spec in node["input"].get(kind, {}).items():
                assert len(spec) > 1 and spec[1].get("tooltip"), f"{name}.{key} has no tooltip: {spec}"
