"""Helios Render Video and takes in a real ComfyUI: resume, reuse, kills, refusals."""

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helios_comfy_graphs import film, node
from safetensors import safe_open
from safetensors.torch import save_file

from helios_core.take.store import CHUNK_SUFFIX, FOLDER_NAME
from helios_core.video.reader import read_video
from helios_setup.errors import PromptRejectedError
from helios_setup.server import failure, output_files

FRAMES, CHUNKS = 33, 4
ARGUMENTS = ("--cpu", "--force-fp32", "--fp32-text-enc")


def output(comfy) -> Path:
    return comfy.log_file.parent / "output"


def store(comfy) -> Path:
    return output(comfy) / FOLDER_NAME


def render(comfy, graph) -> Path:
    (file,) = output_files(comfy.run(graph), output(comfy))
    return file


def manifest(comfy, prefix: str) -> dict:
    """The newest manifest of a prefix."""
    newest = max((store(comfy) / "takes").glob(f"{prefix}-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text(encoding="utf-8"))


def sampled(comfy, prefix: str) -> list[int]:
    """The chunks that the last render of a prefix sampled, as its manifest says and its steps show."""
    last = manifest(comfy, prefix)
    events = [event.data for event in comfy.events(kind="helios.take")]
    take = [e["id"] for e in events if e["kind"] == "start" and e["take"]["name"] == last["take"]][-1]
    chunks = [event["chunk"] for event in events if event["id"] == take and event["kind"] == "chunk"]
    # Told by the sampler after a step of the network.
    stepped = sorted({chunk["chunk"] for chunk in chunks if chunk["state"] == "sampling"})
    assert stepped == [chunk["chunk"] for chunk in last["chunks"] if not chunk["reused"]]
    return stepped


def chunks_made(comfy) -> dict[str, str]:
    """When each chunk file was made; one that is sampled again is written again."""
    made = {}
    for path in store(comfy).glob(f"*{CHUNK_SUFFIX}"):
        with safe_open(path, framework="pt") as file:
            made[path.name] = file.metadata()["checksum"] + json.loads(file.metadata()["values"])["created"]
    return made


def probe(path: Path) -> dict:
    if shutil.which("ffprobe") is None:
        pytest.skip("needs ffprobe (Debian package ffmpeg)")
    fields = "stream=codec_type,codec_name,codec_tag_string,r_frame_rate,nb_read_frames,start_time,color_space,duration"
    command = ["ffprobe", "-v", "fatal", "-count_frames", "-show_entries", fields + ":format_tags", "-of", "json", path]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.fixture(scope="module")
def first(comfy):
    """A finished render that the other tests extend and change."""
    return render(comfy, film())


def test_finished_file_is_a_normal_mp4(comfy, first):
    info = probe(first)
    (stream,) = info["streams"]
    assert float(stream.pop("duration")) == pytest.approx(CHUNKS * FRAMES / 24, abs=0.01)
    assert stream == {
        "codec_type": "video",
        "codec_name": "h264",
        "codec_tag_string": "avc1",
        "color_space": "bt709",
        "r_frame_rate": "24/1",
        "start_time": "0.000000",
        "nb_read_frames": str(CHUNKS * FRAMES),
    }
    assert json.loads(info["format"]["tags"]["prompt"])["render"]["class_type"] == "HeliosRenderVideo"
    data = first.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "faststart"
    assert not list(output(comfy).glob("film_*.partial.mp4"))
    assert manifest(comfy, "film")["status"] == "finished"


def test_its_frames_are_those_of_chain_and_decode(comfy, first):
    graph = film()
    inputs = {k: v for k, v in graph.pop("render")["inputs"].items() if k in CHAIN_INPUTS}
    graph["chain"] = node("HeliosChunkChain", **inputs)
    graph["decode"] = node("HeliosDecode", latent=["chain", 0], vae=["vae", 0])
    graph["save"] = node("SaveImage", images=["decode", 0], filename_prefix="frames")
    from PIL import Image

    files = output_files(comfy.run(graph), output(comfy))
    frames = torch.stack([torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8) for file in files])
    film_frames = read_video(first).reshape(len(files), -1)
    assert (frames.float() - film_frames.float()).abs().mean() < 4
    assert (frames[0].float() - film_frames[-1].float()).abs().mean() > 8, "other frames are further away"


CHAIN_INPUTS = ("model", "positive", "negative", "cfg", "sampler", "history", "seed", "num_chunks")


def test_extending_samples_only_what_is_new(comfy):
    # A seed of its own: tests of other files, before this one, may have stored longer films.
    short, longer = (render(comfy, film("extended", chunks=chunks, seed=17)) for chunks in (2, 4))
    assert sampled(comfy, "extended") == [2, 3]
    assert torch.equal(read_video(longer)[: 2 * FRAMES], read_video(short))


def test_changed_quality_and_prefix_sample_nothing(comfy, first):
    other = render(comfy, film("other", quality=30, codec="hevc"))
    assert sampled(comfy, "other") == []
    stream = probe(other)["streams"][0]
    assert (stream["codec_name"], stream["codec_tag_string"]) == ("hevc", "hvc1")
    assert stream["nb_read_frames"] == str(CHUNKS * FRAMES)


def test_resume_off_samples_everything_and_gets_the_same(comfy, first):
    again = render(comfy, film("anew", resume=False))
    assert sampled(comfy, "anew") == list(range(CHUNKS))
    assert torch.equal(read_video(again), read_video(first))


def schedule(last: str):
    graph = film("schedule", chunks=5, seed=4)
    graph["late"] = node("CLIPTextEncode", clip=["clip", 0], text=last)
    graph["schedule"] = node(
        "HeliosPromptSchedule",
        **{"rows.row_0": ["positive", 0], "rows.row_1": ["late", 0], "first_chunks": "0, 3", "blend": 0},
    )
    graph["render"]["inputs"]["positive"] = ["schedule", 0]
    return graph


def test_prompt_change_at_chunk_3_samples_3_and_later(comfy):
    before = render(comfy, schedule("a storm"))
    assert sampled(comfy, "schedule") == list(range(5))
    after = render(comfy, schedule("a fire"))
    assert sampled(comfy, "schedule") == [3, 4]
    old, new = (read_video(path).split(FRAMES) for path in (before, after))
    assert [torch.equal(a, b) for a, b in zip(old, new, strict=True)] == [True] * 3 + [False] * 2


def with_lora(comfy, strength):
    folder = comfy.log_file.parent / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight": torch.randn(shape, generator=generator)
        for side, shape in (("A", (4, 48)), ("B", (48, 4)))
    }
    save_file(weights, folder / "render.safetensors")
    graph = film("lora", chunks=2)
    graph["lora"] = node(
        "LoraLoaderModelOnly", model=["model", 0], lora_name="render.safetensors", strength_model=strength
    )
    graph["render"]["inputs"]["model"] = ["lora", 0]
    return graph


def test_lora_strength_changes_every_chunk(comfy):
    for strength, expected in ((0.5, [0, 1]), (0.6, [0, 1]), (0.5, [])):
        render(comfy, with_lora(comfy, strength) | {"again": node("PrimitiveFloat", value=strength)})
        comfy.post_raw("/free", {"free_memory": True, "unload_models": True})
        assert sampled(comfy, "lora") == expected, strength


def test_chunk_chain_with_a_take_shares_the_store(comfy, first):
    graph = film()
    inputs = {k: v for k, v in graph.pop("render")["inputs"].items() if k in CHAIN_INPUTS}
    graph["chain"] = node("HeliosChunkChain", **inputs, take="by hand")
    graph["save"] = node("SaveLatent", samples=["chain", 0], filename_prefix="chain")
    comfy.run(graph)
    chunks = json.loads((store(comfy) / "takes" / "by hand.json").read_text(encoding="utf-8"))["chunks"]
    assert [chunk["reused"] for chunk in chunks] == [True] * CHUNKS


def test_audio_track(comfy, first):
    graph = film("sound")
    graph["audio"] = node("EmptyAudio", duration=60.0, sample_rate=44100, channels=2)
    graph["render"]["inputs"]["audio"] = ["audio", 0]
    durations = {stream["codec_type"]: float(stream["duration"]) for stream in probe(render(comfy, graph))["streams"]}
    assert durations["video"] == pytest.approx(CHUNKS * FRAMES / 24, abs=0.01)
    assert durations["audio"] == pytest.approx(CHUNKS * FRAMES / 24, abs=0.05)


def test_save_video_copies_the_stream(comfy, first):
    graph = film("copied")
    graph["save"] = node("SaveVideo", video=["render", 0], filename_prefix="saved", format="auto", codec="auto")
    files = output_files(comfy.run(graph), output(comfy))
    rendered, saved = (next(file for file in files if file.name.startswith(name)) for name in ("copied", "saved"))
    assert torch.equal(read_video(rendered), read_video(saved))


def test_damaged_chunk_is_named_and_made_again(comfy, first):
    key = manifest(comfy, "film")["chunks"][2]["file"]
    damaged = store(comfy) / key
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    again = render(comfy, film("damaged"))
    assert sampled(comfy, "damaged") == [2]
    assert f"{key} is damaged" in comfy.log()
    assert torch.equal(read_video(again), read_video(first))


def test_interrupt_keeps_finished_chunks_and_goes_on(comfy):
    graph = film("interrupted", chunks=400, seed=11)
    prompt_id = comfy.queue(graph)
    comfy.wait_for_event(
        lambda event: (
            event.prompt_id == prompt_id
            and event.type == "progress_state"
            and event.data["nodes"].get("render", {}).get("value", 0) >= 9
        )
    )
    comfy.interrupt()
    assert "Interrupted" in failure(comfy.wait(prompt_id))
    kept = manifest(comfy, "interrupted")
    assert kept["status"] == "interrupted"
    finished = sum(chunk["in_video"] for chunk in kept["chunks"])
    (partial,) = output(comfy).glob("interrupted_*.partial.mp4")
    # A chunk that was sampled and not decoded yet is in the store alone.
    stored = len(kept["chunks"])
    assert 2 <= finished <= stored <= finished + 1
    assert probe(partial)["streams"][0]["nb_read_frames"] == str(finished * FRAMES)
    render(comfy, film("interrupted", chunks=stored + 1, seed=11))
    assert sampled(comfy, "interrupted") == [stored]


def refused(comfy, graph) -> str:
    try:
        message = failure(comfy.wait(comfy.queue(graph)))
    except PromptRejectedError as error:
        message = str(error)
    assert message and "\n" not in message.strip()
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filename_prefix": "../outside"}, "not a name within the output folder"),
        ({"filename_prefix": ""}, "not a name within the output folder"),
        ({"take": "../../take"}, "not a usable name"),
        ({"codec": "vp9"}, "vp9"),
        ({"num_chunks": 0}, "num_chunks"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(comfy, changes, message):
    assert message in refused(comfy, film("refused", **changes))


def test_batch_is_refused(comfy):
    graph = film("refused")
    graph["history"]["inputs"]["batch_size"] = 2
    assert "batch of 2" in refused(comfy, graph)


def test_folder_that_is_a_file_is_refused(comfy):
    (output(comfy) / "occupied").write_text("")
    assert "filename_prefix='occupied/film' cannot be used" in refused(comfy, film("occupied/film"))


# -- kills, and two processes -------------------------------------------------------------------------


def at_random_moment(comfy, graph, moment: str, rng: random.Random) -> None:
    """Queues ``graph`` and kills the process at ``moment`` of the first chunk it samples."""
    before = len(chunks_made(comfy))
    comfy.queue(graph)
    wait_until(comfy, MOMENTS[moment], before)
    time.sleep(rng.uniform(0, 0.03))
    comfy.kill()


def wait_until(comfy, reached, before: int) -> None:
    deadline = time.monotonic() + 60
    while not reached(comfy, before):
        assert time.monotonic() < deadline, comfy.log_tail()
        time.sleep(0.002)


def chunk_count(comfy) -> int:
    return len(list(store(comfy).glob(f"*{CHUNK_SUFFIX}")))


def in_video(comfy) -> int:
    try:
        return sum(chunk["in_video"] for chunk in manifest(comfy, "killed")["chunks"])
    except ValueError:
        return 0


# A chunk's file appears when its sampling ends and its decoding begins; the partial file grows when it is encoded.
MOMENTS = {
    "sampling": lambda comfy, before: any(
        event.type == "progress_state"
        and any(n.get("value", 0) > before * 3 for k, n in event.data["nodes"].items() if k == "render")
        for event in comfy.events()
    ),
    "decoding": lambda comfy, before: chunk_count(comfy) > before,
    "encoding": lambda comfy, before: chunk_count(comfy) > before and in_video(comfy) >= before,
    "between": lambda comfy, before: in_video(comfy) > before,
    "late": lambda comfy, before: chunk_count(comfy) > before + 1,
}


@pytest.mark.slow
def test_five_kills_leave_a_playable_file_and_the_same_film(comfy, new_comfy):
    whole = read_video(render(comfy, film("whole", chunks=12, seed=21)))
    graph, rng, seen = film("killed", chunks=12, seed=21), random.Random(5), {}
    for moment in MOMENTS:
        server = new_comfy(ARGUMENTS)
        at_random_moment(server, graph, moment, rng)
        made = chunks_made(server)
        assert seen.items() <= made.items(), "no finished chunk was sampled again"
        seen = made
        finished = in_video(server)
        if finished:
            (partial,) = output(server).glob("killed_*.partial.mp4")
            playable = int(probe(partial)["streams"][0]["nb_read_frames"]) // FRAMES
            assert finished <= playable <= len(made), moment
        assert len(made) < 12, "killed before the end"
    server = new_comfy(ARGUMENTS)
    result = read_video(render(server, graph))
    assert seen.items() <= chunks_made(server).items()
    assert sampled(server, "killed") == list(range(len(seen), 12))
    assert torch.equal(result, whole)
    assert not list(output(server).glob("*.partial.mp4"))


@pytest.mark.slow
def test_two_servers_and_two_takes_on_one_store(new_comfy):
    one = new_comfy(ARGUMENTS)
    two = new_comfy(ARGUMENTS)
    same, other = film("shared", seed=31), film("shared", seed=32)
    waiting = [(one, one.queue(same)), (two, two.queue(same)), (one, one.queue(other)), (two, two.queue(other))]
    files = [output_files(server.wait(prompt_id), output(server))[0] for server, prompt_id in waiting]
    assert len(set(files)) == 4
    films = [read_video(file) for file in files]
    assert all(len(frames) == CHUNKS * FRAMES for frames in films)
    assert torch.equal(films[0], films[1]) and torch.equal(films[2], films[3])
    assert not torch.equal(films[0], films[2])
    assert chunk_count(one) == 2 * CHUNKS
    assert not list(output(one).glob("*.part*")) and not list(store(one).glob("*.part"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_store_is_refused(new_comfy):
    server = new_comfy(ARGUMENTS)
    store(server).mkdir()
    store(server).chmod(0o500)
    assert "chunk store" in refused(server, film())
