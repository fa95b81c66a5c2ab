"""Anti-drift, another anchor and held colours in a real ComfyUI, on helios-tiny."""

import numpy as np
import pytest
import torch
from helios_comfy_graphs import film, node
from PIL import Image
from safetensors.torch import load_file

from helios_core.pipeline import HeliosPipeline
from helios_core.take.history_file import load_history
from helios_core.video.colour import anchored, anchored_latents
from helios_core.video.reader import read_video
from helios_core.video.segments import VideoSettings, encode_segment
from helios_setup.errors import PromptRejectedError
from helios_setup.server import failure, output_files

ALWAYS = {"threshold": 0.0, "strength": 0.1, "momentum": 0.9}


def output(comfy):
    return comfy.log_file.parent / "output"


def chunks(seed, history="history", **changes):
    """The film of `graphs.film`, by Sample Chunk nodes and a chain; latents of both are saved."""
    graph = film(seed=seed, **changes)
    inputs = {name: value for name, value in graph.pop("render")["inputs"].items()
              if name in ("model", "positive", "negative", "cfg", "sampler", "seed")}  # fmt: skip
    for name, history_of in (("0", [history, 0]), ("1", ["0", 1]), ("2", ["1", 1])):
        graph[name] = node("HeliosSampleChunk", **inputs, history=history_of)
    graph["chain"] = node("HeliosChunkChain", **inputs, history=[history, 0], num_chunks=3)
    return graph, inputs


def saved(comfy, graph, *names):
    """Latents of nodes, by SaveLatent."""
    graph = dict(graph)
    for name in names:
        graph[f"save {name}"] = node("SaveLatent", samples=[name, 0], filename_prefix=f"latents/{name}")
    entry = comfy.run(graph)
    found = []
    for name in names:
        (shown,) = entry["outputs"][f"save {name}"]["latents"]
        found.append(load_file(output(comfy) / shown["subfolder"] / shown["filename"])["latent_tensor"])
    return found


def test_anti_drift_in_chunks_and_chain_is_one_film_and_changes_it(comfy):
    graph, _ = chunks(seed=401)
    plain = saved(comfy, graph, "chain")[0].split(9, dim=2)
    graph, _ = chunks(seed=401, history="steady")
    graph["steady"] = node("HeliosAntiDrift", history=["history", 0], **ALWAYS)
    *single, chain = saved(comfy, graph, "0", "1", "2", "chain")
    assert torch.equal(torch.cat(single, dim=2), chain)
    # The second chunk departs and is shown as it is; the third sees another past.
    assert torch.equal(single[0], plain[0]) and torch.equal(single[1], plain[1])
    assert not torch.equal(single[2], plain[2])


def test_off_and_never_stepping_in_are_the_same_latents(comfy):
    graph, _ = chunks(seed=402)
    (off,) = saved(comfy, graph, "chain")
    graph, _ = chunks(seed=402, history="steady")
    graph["steady"] = node("HeliosAntiDrift", history=["history", 0], **ALWAYS | {"threshold": 100.0})
    assert torch.equal(saved(comfy, graph, "chain")[0], off)


def test_the_film_strip_and_the_manifest_tell_where_it_stepped_in(comfy):
    graph = film("steady", chunks=3, seed=403, history=["steady", 0], take="steady")
    graph["steady"] = node("HeliosAntiDrift", history=["history", 0], **ALWAYS)
    graph["keep"] = node("HeliosSaveHistory", history=["render", 1], filename_prefix="helios_history/steady")
    for _ in range(2):  # the second time from the store
        comfy.run(graph)
        take = comfy.get("/helios/takes")["takes"][-1]
        assert [cell["anti_drift"] for cell in take["chunks"]] == [False, True, True]
    (file, *_) = sorted((output(comfy) / "helios_history").glob("steady_*.safetensors"))
    kept = load_history(file).anti_drift
    assert kept.corrupted and kept.mean.shape == (1, 16) and kept.threshold == 0


def test_another_anchor_reaches_the_next_chunk_alone(comfy):
    graph, inputs = chunks(seed=404)
    graph["image"] = node("EmptyImage", width=96, height=80, batch_size=1, color=0x3366CC)
    graph["scene"] = node("HeliosAnchorHistory", history=["1", 1], strength=1.0)
    graph["picture"] = node("HeliosAnchorHistory", history=["1", 1], strength=1.0, image=["image", 0], vae=["vae", 0])
    graph["half"] = node("HeliosAnchorHistory", history=["1", 1], strength=0.5, image=["image", 0], vae=["vae", 0])
    graph["none"] = node("HeliosAnchorHistory", history=["1", 1], strength=0.0)
    names = ("scene", "picture", "half", "none")
    for name in names:
        graph[f"2 {name}"] = node("HeliosSampleChunk", **inputs, history=[name, 0])
    plain, *others = saved(comfy, graph, "2", *(f"2 {name}" for name in names))
    assert torch.equal(others[-1], plain)
    assert all(not torch.equal(a, b) for i, a in enumerate((plain, *others[:-1])) for b in others[i:-1])


def ending(**changes):
    """The nodes of an end frame; the sampler that chunks get is ``end``."""
    inputs = {"sampler": ["sampler", 0], "vae": ["vae", 0], "image": ["image", 0], "history": ["history", 0],
              "num_chunks": 3, "guided_chunks": 1, "strength": 1.0}  # fmt: skip
    return {"image": node("EmptyImage", width=96, height=80, batch_size=1, color=0x3366CC),
            "end": node("HeliosEndFrame", **inputs | changes)}  # fmt: skip


def test_an_end_frame_guides_the_last_chunk_alone_by_hand_as_in_a_chain(comfy):
    """And a chain with the store of the one without finds the chunks before."""
    graph, _ = chunks(seed=406)
    graph["chain"]["inputs"]["take"] = "no end"
    (plain,) = saved(comfy, graph, "chain")
    graph, _ = chunks(seed=406, sampler=["end", 0])
    graph |= ending()
    graph["chain"]["inputs"]["take"] = "end"
    *single, chain = saved(comfy, graph, "0", "1", "2", "chain")
    assert torch.equal(torch.cat(single, dim=2), chain)
    assert torch.equal(chain[:, :, :18], plain[:, :, :18]) and not torch.equal(chain[:, :, 18:], plain[:, :, 18:])
    take = comfy.get("/helios/takes")["takes"][-1]
    assert [cell["reused"] for cell in take["chunks"]] == [True, True, False]


def test_an_end_frame_gives_the_headless_latents(comfy, tiny_folder):
    pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    picture = Image.fromarray(pixels.numpy())
    picture.save(comfy.log_file.parent / "input" / "ends_here.png")
    graph, _ = chunks(seed=408, sampler=["end", 0])
    graph |= ending(guided_chunks=2, strength=0.9) | {"image": node("LoadImage", image="ends_here.png")}
    for name in ("0", "1", "2"):
        del graph[name]
    (made,) = saved(comfy, graph, "chain")
    pipeline = HeliosPipeline.from_pretrained(tiny_folder("distilled"))
    expected = pipeline(
        "a boat", width=64, height=64, num_frames=99, pyramid_num_inference_steps_list=[1, 1, 1],
        is_amplify_first_chunk=False, generator=torch.Generator().manual_seed(408), output_type="latent",
        end_image=picture, end_chunks=2, end_strength=0.9,
    ).latents  # fmt: skip
    assert (pipeline.vae.normalise(made) - expected).abs().max() <= 1e-4


def test_a_render_ends_on_the_image_and_a_film_that_stops_before_is_told(comfy):
    graph = film("ends", chunks=2, seed=407, sampler=["end", 0]) | ending(num_chunks=2)
    (rendered,) = output_files(comfy.run(graph), output(comfy))
    graph = film("stops", chunks=2, seed=407, sampler=["end", 0]) | ending(num_chunks=6)
    before = len(comfy.events())
    (stopped,) = output_files(comfy.run(graph), output(comfy))
    texts = [event.data["text"] for event in comfy.events()[before:] if event.type == "progress_text"]
    assert "The film ends 4 chunks before its end frame: set num_chunks of Helios End Frame to the film's." in texts
    ends = [read_video(file)[-1].float() for file in (rendered, stopped)]
    assert (ends[0] - ends[1]).abs().mean() > 5


def test_an_end_frame_on_another_sampler_is_refused(comfy):
    core = film("refused", sampler=["end", 0]) | ending() | {"sampler": node("KSamplerSelect", sampler_name="euler")}
    with pytest.raises(PromptRejectedError, match="sampler is a KSAMPLER, not a Helios sampler"):
        comfy.run(core)
    other = film("refused", sampler=["end", 0]) | ending()
    other["sampler"] = node("HeliosPyramidSampler", steps="1, 1, 1")
    with pytest.raises(PromptRejectedError, match="connect the Helios DMD Sampler node"):
        comfy.run(other)


def test_an_image_without_a_vae_is_refused(comfy):
    graph, _ = chunks(seed=404)
    graph["image"] = node("EmptyImage", width=64, height=64, batch_size=1, color=0)
    graph["picture"] = node("HeliosAnchorHistory", history=["history", 0], strength=1.0, image=["image", 0])
    graph["keep"] = node("HeliosSaveHistory", history=["picture", 0], filename_prefix="refused")
    for name in ("0", "1", "2", "chain"):
        del graph[name]
    with pytest.raises(RuntimeError, match="vae is not connected, and image needs it"):
        raise RuntimeError(failure(comfy.wait(comfy.queue(graph))))


@pytest.mark.parametrize(("name", "value"), [("threshold", -0.1), ("strength", 1.5), ("momentum", float("nan"))])
def test_settings_out_of_range_are_refused_before_anything_runs(comfy, name, value):
    graph = film("refused", seed=405, history=["steady", 0])
    graph["steady"] = node("HeliosAntiDrift", history=["history", 0], **ALWAYS | {name: value})
    with pytest.raises(PromptRejectedError, match=name):
        comfy.run(graph)


def test_held_latents_are_the_librarys(comfy):
    graph, _ = chunks(seed=401)
    graph["held"] = node("HeliosLatentColourAnchor", latent=["chain", 0], strength=0.5)
    graph["after"] = node("HeliosLatentColourAnchor", latent=["chain", 0], strength=1.0, reference=["2", 0])
    plain, last, held, after = saved(comfy, graph, "chain", "2", "held", "after")
    assert torch.allclose(held, anchored_latents(plain, strength=0.5), atol=1e-6)
    assert torch.allclose(after, anchored_latents(plain, last), atol=1e-6)


def test_held_colours_are_the_librarys(comfy):
    frames = np.random.default_rng(5).integers(60, 200, (1, 16, 24, 3), dtype=np.uint8).repeat(30, axis=0)
    frames = np.stack([frame - i for i, frame in enumerate(frames)])
    path = comfy.log_file.parent / "input" / "darkens.mp4"
    path.write_bytes(encode_segment(torch.from_numpy(frames), VideoSettings(24, 16, crf=0)))
    graph = {
        "load": node("LoadVideo", file="darkens.mp4"),
        "parts": node("GetVideoComponents", video=["load", 0]),
        "hold": node("HeliosColourAnchor", images=["parts", 0], strength=0.8, chunk_frames=10),
        "video": node("CreateVideo", images=["hold", 0], fps=24.0),
        "save": node("SaveVideo", video=["video", 0], filename_prefix="held", format="mp4", codec="h264"),
    }
    (file,) = output_files(comfy.run(graph), output(comfy))
    expected = anchored(read_video(path).float() / 255, strength=0.8, chunk_frames=10)
    found = read_video(file).float() / 255
    assert (found.mean(dim=(1, 2)) - expected.mean(dim=(1, 2))).abs().max() < 0.02
    ends = [x[-4:].mean() - x[:4].mean() for x in (read_video(path).float() / 255, found)]
    assert ends[0] < -0.08 and abs(ends[1]) < 0.5 * abs(ends[0])
