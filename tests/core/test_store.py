"""Chunk store, keys, takes and their growing video, without ComfyUI."""

import functools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import av
import pytest
import torch
from safetensors.torch import save_file

from helios_core.cli import main
from helios_core.errors import HeliosError
from helios_core.fingerprint import file_fingerprint, fingerprint
from helios_core.history import History
from helios_core.pipeline import HeliosPipeline
from helios_core.store import PART_SUFFIX, ChunkStore, StoredChunk, chunk_key, start_key
from helios_core.take import Take
from helios_core.take_video import GrowingVideo, TakeVideo, VideoSettings, check_audio, encode_segment
from helios_core.video import read_video

SETTINGS = VideoSettings(64, 32)
PREVIOUS = "0" * 40


def chunk(seed: int = 0) -> StoredChunk:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 16, 9, 8, 8, generator=generator)
    return StoredChunk(latents, History.empty(64, 64).after(latents, generator, seed))


def frames(seed: int = 0) -> torch.Tensor:
    coarse = torch.randint(0, 255, (33, 4, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.fixture
def store(tmp_path) -> ChunkStore:
    store = ChunkStore(tmp_path / "store")
    store.prepare()
    return store


def same(a: StoredChunk, b: StoredChunk) -> bool:
    tensors = [(a.latents, b.latents)]
    tensors += [(getattr(a.history, n), getattr(b.history, n)) for n in ("latents", "anchor", "random_state")]
    plain = (replace(x.history, latents=None, anchor=None, random_state=None) for x in (a, b))
    return all(torch.equal(x, y) for x, y in tensors) and len({repr(x) for x in plain}) == 1


# -- fingerprints and keys ------------------------------------------------------------------------------


def test_fingerprints_tell_values_apart():
    values = [
        None, 0, False, 1, 1.0, "1", b"1", [1], [[1]], [1, 2], [2, 1], {"a": 1}, {"a": 2}, {1}, {1, 2},
        torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float16), torch.tensor([0.0, 1.0]),
        torch.nn.Linear(2, 2, bias=False), lambda x: x + 1, lambda x: x + 2, functools.partial(int, base=2),
        ["ab", "c"], ["a", "bc"], History.empty(64, 64), History.empty(64, 128), len, max,
    ]  # fmt: skip
    assert len({fingerprint(value) for value in values}) == len(values)


def test_fingerprints_see_closures_slots_and_module_weights():
    def scaled(by):
        return lambda x: x * by

    class Slotted:
        __slots__ = ("value",)

        def __init__(self, value):
            self.value = value

    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for a, b in ((scaled(1), scaled(2)), (Slotted(1), Slotted(2)), (one, two)):
        assert fingerprint(a) != fingerprint(b)
    assert fingerprint(scaled(1)) == fingerprint(scaled(1))
    assert fingerprint(one, known=lambda v: "base" if v is one else None) == fingerprint(
        two, known=lambda v: "base" if v is two else None
    )


def test_fingerprints_are_equal_in_another_process():
    values = "{'b': {3, 1, 'x'}, 'a': [torch.arange(5), 1.5, torch.float16], 'c': DMDSampler()}"
    program = (
        "import torch; from helios_core.fingerprint import fingerprint; from helios_core.samplers import DMDSampler; "
        f"print(fingerprint({values}))"
    )
    results = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
        )
        results.add(run.stdout)
    assert len(results) == 1


def test_cycles_end():
    value: list = [1]
    value.append(value)
    assert fingerprint(value) == fingerprint(value)


def test_file_fingerprint_sees_every_tensor_and_not_the_name(tmp_path):
    tensors = {f"t{i}": torch.full((2000, 100), float(i)) for i in range(4)}
    save_file(tensors, tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "copy.safetensors")
    expected = file_fingerprint(tmp_path / "a.safetensors")
    assert file_fingerprint(tmp_path / "copy.safetensors") == expected
    for name, tensor in tensors.items():
        save_file({**tensors, name: tensor + 1e-3}, tmp_path / f"{name}.safetensors")
        assert file_fingerprint(tmp_path / f"{name}.safetensors") != expected
    other = tmp_path / "other.bin"
    other.write_bytes(bytes(range(256)) * 8192)
    before = file_fingerprint(other)
    other.write_bytes(bytes(reversed(range(256))) * 8192)
    assert file_fingerprint(other) != before, "a file that changed is read again"


def test_keys_follow_everything_before():
    start = start_key(History.empty(64, 64))
    assert start != start_key(History.empty(64, 128))
    first = chunk_key(start, model="m", seed=1)
    assert first == chunk_key(start, seed=1, model="m")
    assert len({first, chunk_key(start, model="n", seed=1), chunk_key(start, model="m", seed=2), chunk_key(first)}) == 4


# -- files ----------------------------------------------------------------------------------------------


def test_a_chunk_returns_whole(store):
    assert store.get_chunk("a") is None
    store.put_chunk("a", PREVIOUS, chunk())
    assert same(store.get_chunk("a"), chunk())
    assert not list(store.folder.glob(f"*{PART_SUFFIX}"))


@pytest.mark.parametrize("damage", ["flip", "header", "cut", "empty", "foreign", "renamed"])
def test_damage_is_named_removed_and_made_again(store, caplog, damage):
    store.put_chunk("a", PREVIOUS, chunk())
    path = store.chunk_file("a")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "header":
        data[data.index(b'"previous_key') + 1] ^= 1
    elif damage == "foreign":
        save_file({"x": torch.zeros(3)}, path)
        data = bytearray(path.read_bytes())
    elif damage == "renamed":
        store.put_chunk("b", PREVIOUS, chunk(1))
        data = bytearray(store.chunk_file("b").read_bytes())
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b""}.get(damage, data))
    take = Take(store, "take", {})
    found = take.chunk(0, "a", PREVIOUS, chunk)
    assert not found.reused and same(store.get_chunk("a"), chunk())
    assert path.name in caplog.text and "damaged" in caplog.text


def test_a_failed_write_leaves_nothing_and_keeps_the_rest(store, monkeypatch):
    store.put_chunk("a", PREVIOUS, chunk())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HeliosError, match=r"No space left on device.*finished chunks are kept"):
        store.put_chunk("b", PREVIOUS, chunk())
    assert [path.name for path, _ in store.files()] == [store.chunk_file("a").name]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HeliosError, match=r"chunk store .* cannot be written"):
        Take(ChunkStore(tmp_path / "file" / "store"), "take", {})


def aged(store, seconds):
    for path in store.folder.glob("*.safetensors"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_eviction_takes_what_was_used_longest_ago(store):
    for key in "abc":
        store.put_chunk(key, PREVIOUS, chunk())
    size = store.size() // 3
    for age, key in enumerate("bac"):
        os.utime(store.chunk_file(key), (time.time() - 8000 + age * 100,) * 2)
    (store.folder / f"{'0' * 32}{PART_SUFFIX}").touch()
    os.utime(store.folder / f"{'0' * 32}{PART_SUFFIX}", (0, 0))
    store.get_chunk("b")
    store.max_bytes = 3 * size + 100
    store.put_chunk("d", PREVIOUS, chunk())
    assert {key for key in "abcd" if store.chunk_file(key).exists()} == set("bcd")
    assert not list(store.folder.glob(f"*{PART_SUFFIX}")), "left behind by a killed process"


def test_eviction_spares_a_running_take(store):
    store.max_bytes = 1
    take = Take(store, "take", {})
    for index, key in enumerate("abc"):
        aged(store, 4000)  # as if every chunk took over an hour, at whose end the take touches its files
        store.touch("abc")
        take.chunk(index, key, PREVIOUS, chunk)
    assert all(store.chunk_file(key).exists() for key in "abc")
    aged(store, 4000)
    store.put_chunk("d", PREVIOUS, chunk())
    assert not any(store.chunk_file(key).exists() for key in "abc")


def test_clear(store):
    Take(store, "take", {}).chunk(0, "a", PREVIOUS, chunk)
    assert store.clear() > 0
    assert store.size() == 0 and not list(store.takes.iterdir())


def hammer(folder: str, seed: int) -> None:
    """Writes, reads, evicts and clears as fast as it can; fails on anything but whole chunks."""
    store, rng = ChunkStore(folder, max_bytes=400_000, grace=0.0), random.Random(seed)
    for _ in range(60):
        number = rng.randrange(6)
        found = store.get_chunk(str(number))
        assert found is None or same(found, chunk(number))
        store.put_chunk(str(number), PREVIOUS, chunk(number))
        store.write_manifest("shared", {"writer": seed, "text": "x" * 1000})
        assert set(json.loads((store.takes / "shared.json").read_text(encoding="utf-8"))) == {"writer", "text"}


HAMMER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("store_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.hammer(sys.argv[2], int(sys.argv[3]))
"""


def test_processes_share_a_folder(store, caplog):
    commands = [[sys.executable, "-c", HAMMER, __file__, str(store.folder), seed] for seed in "12"]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(120) for process in processes] == [0, 0]
    for number in range(6):
        found = store.get_chunk(str(number))
        assert found is None or same(found, chunk(number))
    assert "damaged" not in caplog.text


def test_manifest_tells_people(store):
    take = Take(store, "my take", {"prompt": "ein Boot – мир", "seed": 3})
    take.chunk(0, "a", PREVIOUS, chunk)
    take.in_video(0, store.folder / "film.mp4")
    take.end("finished")
    text = (store.takes / "my take.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert "ein Boot – мир" in text and manifest["status"] == "finished"
    (entry,) = manifest["chunks"]
    assert entry["in_video"] and not entry["reused"] and (store.folder / entry["file"]).exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\\b", " a", "a.", "x" * 101, "a\n"])
def test_take_names_that_could_leave_the_folder_are_refused(store, name):
    with pytest.raises(HeliosError, match="not a usable name"):
        Take(store, name, {})


# -- the growing video ----------------------------------------------------------------------------------


def grown(path, segments, settings=SETTINGS):
    video = GrowingVideo(path)
    for segment in segments:
        video.append(segment, settings)
    video.close()
    return video


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_every_length_plays_and_equals_the_finished_file(tmp_path, store, codec):
    settings = replace(SETTINGS, codec=codec, fps=23.976)
    path, lengths = tmp_path / "film.partial.mp4", []

    def on_chunk(_, partial):
        lengths.append(len(read_video(partial)))

    with TakeVideo(path, settings, store, on_chunk=on_chunk) as video:
        for i in range(3):
            video.add(str(i), functools.partial(frames, i))
        video._stop()
        growing = read_video(path)
        video.finish(lambda part: part.replace(tmp_path / "film.mp4"))
    assert lengths == [33, 66, 99]
    finished = read_video(tmp_path / "film.mp4")
    assert torch.equal(finished, growing)
    for i, part in enumerate(finished.split(33)):
        assert (part.float() - frames(i).float()).abs().mean() < 8
    assert not path.exists()
    with av.open(str(tmp_path / "film.mp4")) as container:
        times = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.pts is not None]
    assert sorted(times) == [i / settings.rate for i in range(99)]


def test_a_torn_tail_is_written_again(tmp_path):
    segments = [encode_segment(frames(i), SETTINGS) for i in range(3)]
    path, whole = tmp_path / "film.partial.mp4", tmp_path / "whole.partial.mp4"
    grown(whole, segments)
    expected = whole.read_bytes()
    for length in (0, 10, 500, len(expected) // 2, len(expected) - 1, len(expected)):
        path.write_bytes(expected[:length])
        grown(path, segments)
        assert path.read_bytes() == expected


def test_a_full_disk_keeps_the_chunks_before(tmp_path, store, monkeypatch):
    segments = [encode_segment(frames(i), SETTINGS) for i in range(2)]
    video = GrowingVideo(tmp_path / "film.partial.mp4")
    video.append(segments[0], SETTINGS)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space"):
        video.append(segments[1], SETTINGS)
    assert len(read_video(tmp_path / "film.partial.mp4")) == 33
    with (
        pytest.raises(HeliosError, match=r"cannot be written .No space left on device.*finished chunks are kept"),
        TakeVideo(tmp_path / "other.partial.mp4", SETTINGS, store) as take,
    ):
        for i in range(9):
            take.add(str(i), frames)


def test_a_changed_chunk_replaces_what_follows_only_then(tmp_path):
    segments = [encode_segment(frames(i), SETTINGS) for i in range(4)]
    path = tmp_path / "film.partial.mp4"
    grown(path, segments[:3])
    video = GrowingVideo(path)
    video.append(segments[0], SETTINGS)
    assert len(read_video(path)) == 99, "nothing is lost before the new chunk exists"
    video.append(segments[3], SETTINGS)
    assert len(read_video(path)) == 66
    video.close()


def test_two_writers_of_one_name_get_two_files(tmp_path):
    one, two = (GrowingVideo(tmp_path / "film.partial.mp4") for _ in range(2))
    assert one.path != two.path
    one.close()
    three = GrowingVideo(tmp_path / "film.partial.mp4")
    assert three.path == one.path
    two.close()
    three.close()


def test_segments_are_reused_unless_settings_differ(tmp_path, store):
    def render(settings, vae="v"):
        decoded = []
        with TakeVideo(tmp_path / "film.partial.mp4", settings, store, vae) as video:
            video.add("a", lambda: decoded.append(1) or frames())
            video.finish(lambda part: part.replace(tmp_path / "film.mp4"))
        return len(decoded)

    assert [render(SETTINGS), render(SETTINGS), render(replace(SETTINGS, crf=30))] == [1, 0, 1]
    assert render(SETTINGS, "another VAE") == 1


def test_the_queue_is_bounded_and_errors_arrive(tmp_path, store):
    with TakeVideo(tmp_path / "film.partial.mp4", SETTINGS, store) as video:
        assert video._queue.maxsize == 1
        with pytest.raises(HeliosError, match="encoder failed"):
            for i in range(9):
                video.add(str(i), lambda: torch.zeros(33, 32, 64, 3))
    assert not (tmp_path / "film.partial.mp4").exists(), "nothing was written to it"


@pytest.mark.parametrize(
    ("shape", "rate", "message"),
    [((1, 3, 100), 44100, "channels"), ((2, 100), 44100, "channels"), ((1, 2, 100), 12345, "resample it to 12000")],
)
def test_audio_that_aac_lacks_is_refused(shape, rate, message):
    with pytest.raises(HeliosError, match=message):
        check_audio({"waveform": torch.zeros(shape), "sample_rate": rate})


@pytest.mark.skipif(sys.platform != "linux", reason="the filling of fresh memory is glibc's")
def test_the_same_frames_give_the_same_segment_whatever_was_in_memory(tmp_path):
    # x265 has no settings that pass this; its segments are stored like x264's, and equal in every other way.
    save_file({str(i): frames(i) for i in range(3)}, tmp_path / "frames.safetensors")
    program = (
        "import hashlib, sys; from safetensors.torch import load_file\n"
        "from helios_core.take_video import VideoSettings, encode_segment\n"
        "for _, frames in sorted(load_file(sys.argv[1]).items()):\n"
        "    print(hashlib.md5(encode_segment(frames, VideoSettings(64, 32))).hexdigest())"
    )
    results = set()
    for filling in ("0", "85", "170"):
        environment = {**os.environ, "MALLOC_PERTURB_": filling}
        command = [sys.executable, "-c", program, str(tmp_path / "frames.safetensors")]
        results.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(results) == 1


# -- the command line -----------------------------------------------------------------------------------


def generate(folder, **options):
    arguments = {"prompt": "a boat", "output": folder / "film.mp4", "width": 64, "height": 64, "take": "film"}
    arguments |= {"steps": "1 1 1", "seconds": 4, "seed": 2} | options
    words = [word for name, value in arguments.items() for word in (f"--{name}", *str(value).split(" "))]
    words[words.index("--prompt") + 1 : words.index("--output")] = [str(arguments["prompt"])]
    return main(["generate", *words])


def reused(folder):
    manifest = json.loads((folder / "helios_store" / "takes" / "film.json").read_text(encoding="utf-8"))
    return [entry["reused"] for entry in manifest["chunks"]]


def test_command_line_resumes_and_equals_the_pipeline(tmp_path, tiny_folder, capsys):
    model = tiny_folder("distilled")
    assert generate(tmp_path, model=model) == 0
    assert reused(tmp_path) == [False] * 3
    film = read_video(tmp_path / "film.mp4")
    expected = HeliosPipeline.from_pretrained(model)(
        "a boat", width=64, height=64, num_frames=99, pyramid_num_inference_steps_list=[1, 1, 1], output_type="uint8",
        generator=torch.Generator().manual_seed(2),
    ).frames[0]  # fmt: skip
    assert (film.float() - expected.float()).abs().mean() < 4
    assert generate(tmp_path, model=model, seconds=5) == 0
    assert reused(tmp_path) == [True] * 3 + [False]
    assert torch.equal(read_video(tmp_path / "film.mp4")[:99], film)
    assert generate(tmp_path, model=model, seconds=5, crf=30) == 0
    assert reused(tmp_path) == [True] * 4
    assert generate(tmp_path, model=model, prompt="a fire") == 0
    assert reused(tmp_path) == [False] * 3

    assert main(["store", "--folder", str(tmp_path / "helios_store")]) == 0
    assert "film: 3 chunks in" in capsys.readouterr().out
    assert main(["store", "--folder", str(tmp_path / "helios_store"), "--clear"]) == 0
    assert not list((tmp_path / "helios_store").glob("*.safetensors"))


def test_command_line_killed_goes_on(tmp_path, tiny_folder):
    """SIGKILL in a child process, then the same command: the film of an uninterrupted run, no chunk made twice."""
    model, folder = tiny_folder("distilled"), tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-m", "helios_core", "generate", "--prompt", "a boat", "--width", "64", "--height", "64"]
    command += ["--model", str(model), "--take", "film", "--steps", "1", "1", "1", "--seconds", "8", "--seed", "2"]
    with subprocess.Popen([*command, "--output", str(folder / "film.mp4")], stderr=subprocess.DEVNULL) as process:
        while len(list(folder.glob("helios_store/*.chunk.safetensors"))) < 2:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    made = {path: path.read_bytes() for path in folder.glob("helios_store/*.chunk.safetensors")}
    assert 2 <= len(made) < 6
    generate(folder, model=model, seconds=8)
    assert reused(folder) == [True] * len(made) + [False] * (6 - len(made))
    assert all(path.read_bytes() == content for path, content in made.items())
    whole = tmp_path / "whole"
    whole.mkdir()
    generate(whole, model=model, seconds=8)
    assert torch.equal(read_video(folder / "film.mp4"), read_video(whole / "film.mp4"))


def test_functions_differ_by_the_names_they_use():
    def first(a):
        return a["x"].sin()

    def second(a):
        return a["x"].cos()

    second.__qualname__ = first.__qualname__
    assert fingerprint(first) != fingerprint(second)


def test_foreign_files_in_the_folder_are_left_alone(tmp_path):
    foreign = [tmp_path / "film.part", tmp_path / "model.chunk.safetensors", tmp_path / "takes" / "notes.json"]
    (tmp_path / "takes").mkdir()
    for path in foreign:
        path.write_text("[]")
        os.utime(path, (0, 0))
    store = ChunkStore(tmp_path, max_bytes=0, grace=0)
    store.prepare()
    store.clear()
    assert all(path.exists() for path in foreign)
