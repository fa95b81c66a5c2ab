"""The set-up's pip against a package index on this machine: bytes shown, broken downloads resumed."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from helios_setup import pip
from helios_setup.errors import SetupError

WHEEL = "slowly-1.0-py3-none-any.whl"
SIZE = 30_000_000


def make_wheel(folder: Path) -> bytes:
    """A valid wheel whose one file is SIZE random bytes, so that nothing compresses it."""
    files = {
        "slowly.bin": os.urandom(SIZE),
        "slowly-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: slowly\nVersion: 1.0\n",
        "slowly-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, data in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(data)}")
            wheel.writestr(name, data)
        wheel.writestr("slowly-1.0.dist-info/RECORD", "\n".join([*lines, "slowly-1.0.dist-info/RECORD,,"]) + "\n")
    return (folder / WHEEL).read_bytes()


class Index:
    """A package index with one wheel, whose connection breaks after a part of the file, `cuts` times."""

    def __init__(self, wheel: bytes, cuts: int) -> None:
        self.wheel, self.cuts = wheel, cuts
        self.ranges: list[int] = []
        self.sent = 0
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if not request.path.endswith(WHEEL):
            digest = hashlib.sha256(self.wheel).hexdigest()
            page = f'<a href="/files/{WHEEL}#sha256={digest}">{WHEEL}</a>'.encode()
            self.head(request, 200, {"Content-Type": "text/html", "Content-Length": str(len(page))})
            request.wfile.write(page)
            return
        begin = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.ranges.append(begin)
        rest = self.wheel[begin:]
        headers = {
            "Content-Type": "application/zip",
            "Content-Length": str(len(rest)),
            "ETag": '"1"',
            "Cache-Control": "max-age=31536000",
        }
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(self.wheel) - 1}/{len(self.wheel)}"
        self.head(request, 206 if begin else 200, {**headers, "Accept-Ranges": "bytes"})
        if self.cuts:
            self.cuts -= 1
            rest = rest[: len(rest) // 2]
        request.wfile.write(rest)
        self.sent += len(rest)

    @staticmethod
    def head(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()


@pytest.fixture
def serve(tmp_path, monkeypatch) -> Iterator:
    indexes: list[Index] = []

    def start(cuts: int) -> Index:
        index = Index(make_wheel(tmp_path), cuts)
        indexes.append(index)
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_REQUIRE_VIRTUALENV"):
            monkeypatch.delenv(name, raising=False)
        # pip keeps what came from a trusted host alone.
        monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setattr(pip, "venv_program", lambda name: Path(sys.executable))
        monkeypatch.setattr(pip, "LOG", tmp_path / "log")
        return index

    yield start
    for index in indexes:
        index.server.shutdown()
        index.server.server_close()


def test_a_broken_download_goes_on_where_it_broke(serve, tmp_path, capsys):
    index = serve(cuts=2)
    pip.run_pip("Fetching", "download", "--no-deps", "-d", str(tmp_path / "out"), "slowly==1.0")
    assert (tmp_path / "out" / WHEEL).read_bytes() == index.wheel
    assert len(index.ranges) == 3 and index.ranges[0] == 0 < index.ranges[1] < index.ranges[2]
    assert index.sent < 1.5 * len(index.wheel), "what had come is not fetched again"
    shown = capsys.readouterr().out
    assert f"{WHEEL} " in shown and "of 30 MB" in shown
    assert "30 MB downloaded." in shown


def test_a_file_that_came_whole_is_not_fetched_again(serve, tmp_path, capsys):
    index = serve(cuts=0)
    for name in ("first", "second"):
        pip.run_pip("Fetching", "download", "--no-deps", "-d", str(tmp_path / name), "slowly==1.0")
    assert index.ranges == [0]
    assert capsys.readouterr().out.count("MB downloaded.") == 1


def test_a_connection_that_keeps_breaking_is_one_sentence(serve, tmp_path, monkeypatch):
    serve(cuts=1000)
    monkeypatch.setattr(pip, "RESUME_RETRIES", 1)
    with pytest.raises(SetupError, match=r"^Fetching failed: the package index cannot be reached") as caught:
        pip.run_pip("Fetching", "download", "--no-deps", "-d", str(tmp_path / "out"), "slowly==1.0")
    assert "\n" not in str(caught.value)


def test_an_old_pip_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(pip, "VENV", tmp_path)
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "pip-23.2.1.dist-info").mkdir(parents=True)
    assert pip.pip_is_old()
    (packages / "pip-26.0.dist-info").mkdir()
    assert not pip.pip_is_old()
