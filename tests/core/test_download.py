"""The real huggingface_hub client against a small hub on loopback."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from helios_core.commands import download as module

COMMIT = "5" * 40
BIG = "tokenizer/big.bin"
REPOSITORY = "BestWishYsh/Helios-Distilled"
EXTRAS = ("transformer_ode/diffusion_pytorch_model.safetensors", "transformer_init/config.json", "assets/demo.mp4",
          "README.md", "transformer/notes.bin")  # fmt: skip


class Hub(ThreadingHTTPServer):
    """The hub's model API and file routes over one folder; can cut a file once, refuse a token, claim a size."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: dict[str, int] = {}
        self.good_token: str | None = None
        self.claimed: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloaded(self) -> Counter:
        marker = f"/resolve/{COMMIT}/"
        return Counter(path.split(marker)[1] for verb, path, _ in self.requests if verb == "GET" and marker in path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_) -> None:
        pass

    def answer(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        token = self.headers.get("Authorization")
        if self.server.good_token is not None and token != f"Bearer {self.server.good_token}":
            return self.reply(401, b'{"error":"Invalid credentials in Authorization header"}')
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPOSITORY}"):
            return self.reply(200, json.dumps(self.listing()).encode(), {"Content-Type": "application/json"})
        prefix = f"/{REPOSITORY}/resolve/{COMMIT}/"
        file = self.server.folder / path.removeprefix(prefix)
        if not path.startswith(prefix) or not file.is_file():
            return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        return self.send_file(file, path.removeprefix(prefix))

    def listing(self) -> dict:
        files = [file for file in sorted(self.server.folder.rglob("*")) if file.is_file()]
        names = [file.relative_to(self.server.folder).as_posix() for file in files]
        sizes = {name: (self.server.folder / name).stat().st_size for name in names} | self.server.claimed
        siblings = [{"rfilename": name, "size": sizes[name], "blobId": "0" * 40} for name in names]
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "private": False, "tags": [],
                "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip

    def send_file(self, file: Path, name: str) -> None:
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        at = self.server.cut.pop(name, None) if self.command == "GET" else None
        self.reply(206 if first else 200, content[first:], headers, None if at is None else at)

    def reply(self, status: int, body: bytes, headers: dict | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


@pytest.fixture
def hub(tiny_folder, tmp_path):
    folder = tmp_path / "hub"
    shutil.copytree(tiny_folder("distilled"), folder)
    # The client takes 10 MiB at a time: a smaller file has nothing to resume from.
    (folder / BIG).write_bytes(os.urandom(1 << 20) * 24)
    for name in EXTRAS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never needed" * 1000)
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run(hub, target, variant="distilled", code=0, **environment):
    """The command line in its own process: the client reads its environment when it is imported."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(target.parent / "hf-home"), "NO_PROXY": "*", "no_proxy": "*"}
    command = [sys.executable, "-m", "helios_core", "download", "--variant", variant, "--to", str(target)]
    # Away from the checkout, whose `nodes` would be importable from there.
    done = subprocess.run(command, env=ours | own | environment, cwd=target.parent, capture_output=True, text=True,
                          timeout=100, check=False)  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def needed(hub):
    files = (file.relative_to(hub.folder).as_posix() for file in hub.folder.rglob("*") if file.is_file())
    return sorted(name for name in files if name not in (*EXTRAS, "README.txt"))


def arrived(target):
    files = (file.relative_to(target) for file in target.rglob("*") if file.is_file())
    return sorted(file.as_posix() for file in files if file.parts[0] != ".cache")


SHARD = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"


def test_a_cut_connection_is_resumed_and_extras_are_skipped(hub, tmp_path):
    hub.cut[BIG] = 15 << 20
    target = tmp_path / "model"
    output = run(hub, target)
    assert arrived(target) == needed(hub)
    for name in needed(hub):
        assert (target / name).read_bytes() == (hub.folder / name).read_bytes(), name
    assert hub.downloaded()[BIG] == 2
    ranges = [given for verb, path, given in hub.requests if verb == "GET" and path.endswith(BIG) and given]
    assert ranges == [f"bytes={10 << 20}-"]
    assert f"revision/{module.REVISIONS['distilled']}" in next(
        path for _, path, _ in hub.requests if "/api/models" in path
    )
    assert "100%" in output.stderr and str(target) in output.stdout

    # Again, with one file gone and one cut short: these alone.
    hub.requests.clear()
    (target / SHARD).unlink()
    (target / BIG).write_bytes(b"cut short")
    run(hub, target)
    assert hub.downloaded() == {SHARD: 1, BIG: 1}
    assert (target / BIG).read_bytes() == (hub.folder / BIG).read_bytes()
    # Offline: what is there is enough.
    hub.requests.clear()
    run(hub, target, HF_HUB_OFFLINE="1")
    assert not hub.requests


def test_refusals_are_one_clear_sentence(hub, tmp_path):
    def told(expected, target="model", **environment):
        (line,) = [x for x in run(hub, tmp_path / target, code=2, **environment).stderr.splitlines() if "error:" in x]
        assert expected in line, line
        return line

    hub.claimed[SHARD] = 10**15
    told("needs 1000000.0 GB more")
    assert not (tmp_path / "model" / SHARD).exists() and not hub.downloaded()
    hub.claimed.clear()

    hub.good_token = "hf_right"
    told("refused the token for BestWishYsh/Helios-Distilled (HTTP 401)", HF_TOKEN="hf_wrong")
    assert not hub.downloaded()
    told("HF_HUB_OFFLINE is set", HF_HUB_OFFLINE="1")
    run(hub, tmp_path / "with-token", HF_TOKEN="hf_right")
    assert arrived(tmp_path / "with-token") == needed(hub)

    hub.good_token = None
    told("not found (HTTP 404)", HF_ENDPOINT=f"{hub.url}/elsewhere")


def test_only_the_needed_files_match():
    import fnmatch

    def wanted(name):
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in module.NEEDED)

    assert not any(wanted(name) for name in EXTRAS)
    assert wanted(SHARD) and wanted("tokenizer/spiece.model") and wanted("text_encoder/model.safetensors.index.json")


def test_disk_that_fills_up_is_named(tmp_path):
    full = OSError(28, "No space left on device")
    wrapped = RuntimeError("write failed")
    wrapped.__cause__ = full
    assert "full disk" in str(module._explained(wrapped, "mid", tmp_path))
