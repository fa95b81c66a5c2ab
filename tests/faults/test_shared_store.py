"""Several processes on one store: films, the command line that lists it, and one that empties it all the while."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import helios_faults_film as film
import pytest
import torch

from helios_core.take.store import FOLDER_NAME, ChunkStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")

PROCESSES = 3
# One process begins all others, which saves their start.
PROGRAM = """
import contextlib, os, signal, sys, traceback
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import film
import torch
from helios_core.commands.cli import main
from helios_core.take.store import ChunkStore

torch.set_num_threads(1)
folder, limit, grace, films, processes, cleared = Path(sys.argv[2]), *map(int, sys.argv[3:])


def render(process):
    for number in range(films):
        name = f"film{process}-{number}"
        store = ChunkStore(folder / "helios_store", limit, grace)
        film.render(folder, film.noting(folder / f"{name}.notes"), store=store, name=f"{name}.mp4")


def list_and_clear(_):
    while True:
        for options in ([], ["--clear"]):
            with contextlib.redirect_stdout(None):
                assert main(["store", "--folder", str(folder / "helios_store"), *options]) == 0


def begin(task, number):
    child = os.fork()
    if not child:
        try:
            task(number)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


clearing = [begin(list_and_clear, 0) for _ in range(cleared)]
renders = [begin(render, process) for process in range(processes)]
codes = [os.waitpid(child, 0)[1] for child in renders]
for child in clearing:
    codes.append(os.waitpid(child, os.WNOHANG)[0])  # 0: it is still at work
    os.kill(child, signal.SIGKILL)
sys.exit(any(codes))
"""


def render_together(folder: Path, limit: int, grace: int, films: int, cleared: bool) -> list[Path]:
    """Several processes render the same film under their own names; what they left."""
    (folder / FOLDER_NAME).mkdir()
    numbers = (limit, grace, films, PROCESSES, int(cleared))
    command = [sys.executable, "-c", PROGRAM, Path(film.__file__).parent, folder, *numbers]
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    return [folder / f"film{number}-{index}.mp4" for number in range(PROCESSES) for index in range(films)]


@pytest.mark.parametrize("cleared", [False, True], ids=["evicting", "and emptied"])
def test_films_are_right_whatever_others_remove(tmp_path, undisturbed, cleared):
    for path in render_together(tmp_path, limit=60_000, grace=0, films=4, cleared=cleared):
        assert path.read_bytes() == undisturbed[0]
    assert not list(tmp_path.glob("*.partial.mp4"))


def test_processes_share_what_is_finished(tmp_path, undisturbed):
    for path in render_together(tmp_path, limit=2**30, grace=3600, films=2, cleared=False):
        assert path.read_bytes() == undisturbed[0]
    sampled: Counter[int] = Counter()
    for number in range(PROCESSES):
        notes = [(tmp_path / f"film{number}-{index}.notes").read_text().splitlines() for index in range(2)]
        sampled.update(film.numbers(notes[0], "sampled"))
        assert not film.numbers(notes[1], "sampled"), "everything was there by then"
    # Those that begin a chunk at the same moment all sample it.
    assert all(1 <= sampled[chunk] <= PROCESSES for chunk in range(film.CHUNKS))
    store = ChunkStore(tmp_path / FOLDER_NAME)
    assert {take["status"] for take in store.manifests()} == {"finished"} and len(store.manifests()) == 2 * PROCESSES
    assert torch.equal(film.render(tmp_path)[1], undisturbed[1])
    assert json.loads((store.takes / "film.json").read_text())["chunks"][-1]["reused"]
