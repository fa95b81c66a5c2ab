"""run.py without installing anything: arguments, pins, safe unpacking, links and workflow filling."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from helios_setup import comfyui, demo, environment, pip
from helios_setup.commands import check_options, main, parse, run_inside, run_tests
from helios_setup.errors import ServerDiedError, SetupError
from helios_setup.paths import API_WORKFLOWS
from helios_setup.server import ComfyServer, failure, output_files, rejection
from helios_setup.workflow import chunks_for, fill_workflow, load_workflow, workflow_variant

ROOT = Path(__file__).resolve().parent.parent
GRAPH = {
    "1": {"class_type": "HeliosModelLoader", "inputs": {"model": "old", "weight_dtype": "default"}},
    "2": {"class_type": "HeliosTextEncoderLoader", "inputs": {"text_encoder": "old"}},
    "3": {"class_type": "HeliosVAELoader", "inputs": {"vae": "old"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": "a cat"}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": "blurry"}},
    "6": {"class_type": "HeliosPromptSchedule", "inputs": {"rows.row_0": ["4", 0], "blend": 3}},
    "7": {
        "class_type": "HeliosChunkChain",
        "inputs": {"model": ["1", 0], "negative": ["5", 0], "positive": ["6", 0], "num_chunks": 2},
    },
}


def archive(path: Path, *members: tuple[str, bytes], link: tuple[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(info)
    return path


def is_installed(distribution: str) -> bool:
    return any(importlib.metadata.distributions(name=distribution))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- arguments ---------------------------------------------------------------------------------------


def test_test_passes_unknown_arguments_to_pytest():
    options = parse(["test", "--comfyui", "there", "tests/core", "--co", "-k", "chunk", "-x"])
    assert options.comfyui == "there"
    assert options.pytest == ["tests/core", "--co", "-k", "chunk", "-x"]


@pytest.mark.parametrize("given", [[], ["--random-order-seed=7"], ["-p", "no:random_order"]])
def test_test_shuffles_and_says_how_to_repeat_it(monkeypatch, capsys, given):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr("helios_setup.commands.install_system_tools", lambda: None)
    monkeypatch.setattr("helios_setup.commands.subprocess.run", run)
    assert run_tests(Path("tree"), ["tests/core", *given]) == 1
    seeds = [argument for argument in commands[0] if argument.startswith("--random-order-seed=")]
    assert len(seeds) == (0 if "-p" in given else 1)
    said = capsys.readouterr().out
    assert said.endswith(f"run.py test {seeds[0]}\n") if not given else not said


def test_other_commands_refuse_unknown_arguments(capsys):
    with pytest.raises(SystemExit):
        parse(["demo", "--second", "3"])
    assert "--second" in capsys.readouterr().err


def test_demo_options():
    options = parse(["demo", "--prompt", "a dog", "--seconds", "4.5", "--model", "M", "--workflow", "W"])
    assert (options.prompt, options.seconds, options.model, options.workflow) == ("a dog", 4.5, "M", "W")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["demo", "--seconds", "0"], "--seconds is 0"),
        (["demo", "--model", "no-such-folder"], "--model is no-such-folder"),
        (["demo", "--workflow", "../secret"], "--workflow is ../secret"),
    ],
)
def test_bad_options_end_before_any_setup(arguments, named, monkeypatch, tmp_path, capsys):
    (tmp_path / "known.json").write_text("{}")
    monkeypatch.setattr("helios_setup.commands.API_WORKFLOWS", tmp_path)
    monkeypatch.setattr("helios_setup.commands.setup", lambda comfyui: pytest.fail("set-up began"))
    workflow = [] if "--workflow" in arguments else ["--workflow", "known"]
    assert main([*arguments, *workflow]) == 1
    assert named in capsys.readouterr().err


def test_old_python_is_refused_in_one_sentence():
    source = (ROOT / "run.py").read_text(encoding="utf-8").replace("(3, 10)", "(99, 0)")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs Python" in done.stderr and "Traceback" not in done.stderr


def test_run_py_needs_no_packages():
    done = subprocess.run(
        [sys.executable, "-s", "-S", str(ROOT / "run.py"), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("setup", "demo", "test", "serve", "tiny"))


# -- the ComfyUI tree --------------------------------------------------------------------------------


def test_comfyui_path_without_main_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"^COMFYUI_PATH is .*main\.py"):
        comfyui.chosen_tree(None)
    with pytest.raises(SetupError, match=r"^--comfyui is elsewhere"):
        comfyui.chosen_tree("elsewhere")


def test_option_wins_over_the_variable(monkeypatch, tmp_path):
    for name in ("option", "variable"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "main.py").touch()
        (tmp_path / name / "requirements.txt").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "variable"))
    assert comfyui.chosen_tree(str(tmp_path / "option")) == tmp_path / "option"
    assert comfyui.chosen_tree(None) == tmp_path / "variable"


def test_unpack_takes_the_tree_only(tmp_path):
    file = archive(
        tmp_path / "a.tar.gz",
        ("pkg-1/vendor/ComfyUI/main.py", b"print()"),
        ("pkg-1/vendor/ComfyUI/comfy/ops.py", b"x"),
        ("pkg-1/README.md", b"no"),
    )
    comfyui.unpack_tree(file, tmp_path / "tree", sha256(file))
    found = {str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*.*")}
    assert found == {"main.py", str(Path("comfy", "ops.py"))}


def test_wrong_sdist_is_refused(tmp_path):
    file = archive(tmp_path / "a.tar.gz", ("pkg-1/vendor/ComfyUI/main.py", b"print()"))
    with pytest.raises(SetupError, match=comfyui.SDIST_SHA256):
        comfyui.unpack_tree(file, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(
    "name",
    [
        "pkg-1/vendor/ComfyUI/../../../evil.py",
        "/evil.py",
        "pkg-1/vendor/ComfyUI/..\\evil.py",
        "C:/evil.py",
        "../evil.py",
    ],
)
def test_climbing_members_are_refused_whole(name, tmp_path):
    (tmp_path / "inside").mkdir()
    file = archive(tmp_path / "a.tar.gz", ("pkg-1/vendor/ComfyUI/main.py", b""), (name, b"evil"))
    with pytest.raises(SetupError, match="unsafe entry"):
        comfyui.unpack_tree(file, tmp_path / "inside" / "tree", sha256(file))
    assert not list((tmp_path / "inside").iterdir())
    assert not list(tmp_path.rglob("*evil*"))


def test_links_in_the_sdist_are_refused(tmp_path):
    file = archive(tmp_path / "a.tar.gz", link=("pkg-1/vendor/ComfyUI/main.py", "/etc/passwd"))
    with pytest.raises(SetupError, match="unsafe entry"):
        comfyui.unpack_tree(file, tmp_path / "tree", sha256(file))


def test_unpack_never_replaces_a_folder(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "mine.txt").touch()
    file = archive(tmp_path / "a.tar.gz", ("pkg-1/vendor/ComfyUI/main.py", b""))
    with pytest.raises(SetupError, match="move it away"):
        comfyui.unpack_tree(file, tmp_path / "tree", sha256(file))
    assert (tmp_path / "tree" / "mine.txt").exists()


def test_link_is_made_once_and_repaired_when_dangling(tmp_path):
    target, link = tmp_path / "pack", tmp_path / "custom_nodes" / "pack"
    target.mkdir()
    comfyui.link_folder(target, link)
    comfyui.link_folder(target, link)
    assert link.resolve() == target
    target.rename(tmp_path / "moved")
    comfyui.link_folder(tmp_path / "moved", link)
    assert link.resolve() == tmp_path / "moved"


def test_link_leaves_another_folder_alone(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "theirs.py").touch()
    with pytest.raises(SetupError, match="is not a link to"):
        comfyui.link_folder(tmp_path / "pack", tmp_path / "link")
    assert (tmp_path / "link" / "theirs.py").exists()


# -- the environment ---------------------------------------------------------------------------------


def test_torch_set_is_left_out_of_comfyuis_requirements(tmp_path):
    lines = [
        "torch",
        "torchsde",
        "torchvision>=0.2",
        "torchaudio",
        " torch ; python_version > '3'",
        "numpy>=1.25",
    ]
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    assert environment.comfyui_requirements(tmp_path).split() == ["torchsde", "numpy>=1.25"]


def test_wanted_set_changes_with_the_tree(tmp_path):
    (tmp_path / "requirements.txt").write_text("numpy")
    before = environment.wanted_set(tmp_path)
    assert environment.wanted_set(tmp_path) == before
    (tmp_path / "requirements.txt").write_text("numpy\nscipy")
    assert environment.wanted_set(tmp_path) != before


def test_small_disk_is_refused():
    with pytest.raises(SetupError, match="needs 1e\\+09 GB"):
        environment.check_disk(needed_gb=1e9)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("WARNING: Failed to establish a new connection: [Errno 101]", "cannot be reached"),
        ("ERROR: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "another file"),
        ("ERROR: No matching distribution found for torch==2.11.0", "No matching distribution"),
        ("nothing of use", "gave no reason"),
    ],
)
def test_pip_failures_name_the_reason(line, reason):
    assert reason in pip.pip_failure(["Collecting torch", line])


def test_torch_is_no_dependency():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"torch' not in text.partition("[tool")[0]


@pytest.mark.skipif(not is_installed("helios-comfyui"), reason="not installed: run through run.py test")
def test_installed_package_does_not_hide_comfyuis_nodes_module():
    """The editable install must map helios_core alone, not put the checkout on sys.path."""
    code = "import importlib.util as u; print(u.find_spec('helios_core').origin); print(u.find_spec('nodes'))"
    environment_variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # With -c the current folder is searched too, so the question is asked where there is no `nodes`.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(sys.prefix), env=environment_variables, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(ROOT / "helios_core" / "__init__.py"), "None"]


# -- workflows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "chunks"), [(0.1, 1), (33 / 24, 1), (1.376, 2), (3 * 33 / 24, 3), (10, 8), (60, 44)]
)
def test_chunks_cover_the_seconds(seconds, chunks):
    assert chunks_for(seconds) == chunks


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_lengths_that_mean_nothing_are_refused(seconds):
    with pytest.raises(SetupError, match="--seconds is"):
        chunks_for(seconds)


def test_fill_sets_model_prompt_and_length_in_a_copy():
    filled = fill_workflow(GRAPH, "helios-tiny-distilled", "a dog", 4)
    assert filled["1"]["inputs"] == {"model": "helios-tiny-distilled", "weight_dtype": "default"}
    assert filled["2"]["inputs"]["text_encoder"] == filled["3"]["inputs"]["vae"] == "helios-tiny-distilled"
    assert filled["4"]["inputs"]["text"] == "a dog"
    assert filled["5"]["inputs"]["text"] == "blurry"
    assert filled["7"]["inputs"]["num_chunks"] == 3
    assert GRAPH["1"]["inputs"]["model"] == "old"


@pytest.mark.parametrize("name", sorted(path.stem for path in API_WORKFLOWS.glob("*.json")))
def test_every_shipped_workflow_takes_a_prompt(name):
    filled = fill_workflow(load_workflow(API_WORKFLOWS, name), "some-model", "a fresh prompt")
    assert "a fresh prompt" in [node["inputs"].get("text") for node in filled.values()]


def test_fill_workflow_sets_the_size_where_there_is_one():
    graph = GRAPH | {"8": {"class_type": "HeliosEmptyHistory", "inputs": {"width": 640, "height": 384}}}
    filled = fill_workflow(graph, "new", size=(320, 192))
    assert filled["8"]["inputs"] == {"width": 320, "height": 192}
    assert fill_workflow(graph, "new")["8"]["inputs"] == {"width": 640, "height": 384}
    assert filled["7"]["inputs"] == graph["7"]["inputs"]


def test_fill_keeps_what_is_not_given():
    filled = fill_workflow(GRAPH, "M")
    assert filled["4"] == GRAPH["4"] and filled["7"] == GRAPH["7"]


def test_fill_says_what_has_no_place():
    without_text = {key: node for key, node in GRAPH.items() if key != "6"}
    without_text["7"] = {"class_type": "HeliosChunkChain", "inputs": {"positive": ["1", 0]}}
    with pytest.raises(SetupError, match="--prompt"):
        fill_workflow(without_text, "M", prompt="a dog")
    with pytest.raises(SetupError, match="--seconds"):
        fill_workflow(without_text, "M", seconds=2)
    with pytest.raises(SetupError, match="no model"):
        fill_workflow({"4": GRAPH["4"]}, "M")


def test_unknown_workflow_lists_the_known(tmp_path):
    (tmp_path / "one.json").write_text("{}")
    with pytest.raises(SetupError, match="choose one of one"):
        load_workflow(tmp_path, "two")


@pytest.mark.parametrize(
    ("name", "variant"), [("helios_mid_t2v", "mid"), ("helios_base_i2v", "base"), ("anything", "distilled")]
)
def test_variant_follows_the_workflow(name, variant):
    assert workflow_variant(name) == variant


# -- serve ------------------------------------------------------------------------------------------


class ServedError(Exception):
    """In place of a ComfyUI; its arguments are what that would have been started with."""


def served(monkeypatch, tree, *arguments) -> list[str]:
    """The options of the ComfyUI that `run.py serve` starts over ``tree``."""

    def start(*given):
        raise ServedError(*given)

    monkeypatch.setattr(demo, "ComfyServer", start)
    with pytest.raises(ServedError) as started:
        run_inside(parse(["serve", *arguments]), tree)
    return started.value.args[3]


def test_serve_installs_what_the_templates_name_and_takes_an_output_folder(monkeypatch, tmp_path):
    chosen = tmp_path / "videos" / "new"
    options = served(monkeypatch, tmp_path, "--output", str(chosen))
    assert options[options.index("--output-directory") + 1] == str(chosen) and chosen.is_dir()
    nodes = [node for file in API_WORKFLOWS.glob("*.json") for node in load_workflow(API_WORKFLOWS, file.stem).values()]
    named = {node["inputs"].get("file", node["inputs"].get("image")) for node in nodes if "Load" in node["class_type"]}
    named.discard(None)
    assert named == {"example.png", "example.mp4"}
    assert all((tmp_path / "input" / name).stat().st_size for name in named)


def test_serve_keeps_a_users_own_files(monkeypatch, tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "example.png").write_bytes(b"mine")
    served(monkeypatch, tmp_path)
    assert (tmp_path / "input" / "example.png").read_bytes() == b"mine"


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="--output is"):
        check_options(parse(["serve", "--output", str(tmp_path / "file")]))


# -- what the server says ----------------------------------------------------------------------------


def test_rejection_is_one_sentence_for_each_error():
    body = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"},
        "node_errors": {
            "7": {
                "class_type": "HeliosChunkChain",
                "errors": [{"message": "Too small", "details": "num_chunks"}],
            }
        },
    }
    assert rejection(GRAPH, body) == "HeliosChunkChain (node 7): Too small: num_chunks"
    assert rejection(GRAPH, {"error": body["error"]}) == "Prompt outputs failed validation"


def test_failure_names_the_node():
    error = {"node_type": "HeliosDecode", "node_id": "9", "exception_message": "no VAE\n"}
    entry = {"status": {"status_str": "error", "messages": [["execution_error", error]]}}
    assert failure(entry) == "HeliosDecode (node 9): no VAE"
    assert failure({"status": {"status_str": "success", "messages": []}}) is None


def test_output_files_are_what_was_saved(tmp_path):
    saved = {"filename": "a.mp4", "subfolder": "video", "type": "output"}
    preview = {"filename": "b.png", "subfolder": "", "type": "temp"}
    entry = {"outputs": {"1": {"images": [saved, preview], "animated": [True]}}}
    assert output_files(entry, tmp_path) == [tmp_path / "video" / "a.mp4"]


def test_a_server_that_dies_shows_its_last_words(tmp_path):
    (tmp_path / "main.py").write_text("print('\\x1b[31mno such model\\x1b[0m'); raise SystemExit(3)")
    server = ComfyServer(tmp_path, Path(sys.executable), tmp_path / "log")
    with pytest.raises(ServerDiedError, match=r"exit code 3(.|\n)*\nno such model$"):
        server.start()
    assert not server.alive()


def test_a_server_that_never_answers_is_stopped(tmp_path):
    (tmp_path / "main.py").write_text("import time; time.sleep(600)")
    server = ComfyServer(tmp_path, Path(sys.executable), tmp_path / "log")
    with pytest.raises(ServerDiedError, match="does not answer"):
        server.start(timeout=1)
    assert not server.alive()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to unwind on")
def test_terminating_the_owner_stops_the_server(tmp_path):
    (tmp_path / "main.py").write_text("import time; time.sleep(600)")
    owner = (
        "import sys, time\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from helios_setup.server import ComfyServer, stop_on_terminate\n"
        "stop_on_terminate()\n"
        "here = Path(sys.argv[2])\n"
        "server = ComfyServer(here, Path(sys.executable), here / 'log')\n"
        "def wait_for_ever(deadline):\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(600)\n"
        "server._wait_until_ready = wait_for_ever\n"
        "server.start()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", owner, str(ROOT), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.kill(pid, 0)
    process.terminate()
    assert process.wait(30) == 128 + 15
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _exists(pid):
        time.sleep(0.05)
    assert not _exists(pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_requirements_file_is_the_packs_own_dependencies():
    """ComfyUI-Manager reads the file, pip and the registry read pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (ROOT / "requirements.txt").read_text(encoding="utf-8").split() == project["dependencies"]
    assert not any("torch" in name for name in project["dependencies"])
