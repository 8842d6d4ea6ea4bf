"""Web servers on 127.0.0.1 that tests download from, with the faults that real ones have.

`FileServer` serves what is put into `files`; `FakeHub` serves directories as repositories of the
Hugging Face hub. Both count requests and take orders to misbehave:

    with FileServer() as server:
        server.files["/a.bin"] = b"..."
        server.faults.append(Fault(cut=1000))   # the next GET breaks off; `always` would: every one
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import threading
import urllib.parse
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer to a GET."""

    status: int | None = None  # answers with this status and nothing else
    cut: int | None = None  # closes the connection after so many bytes of the body
    stall: int | None = None  # goes silent after so many bytes of the body
    silent: bool = False  # takes the request and says nothing
    ignore_range: bool = False  # sends the whole file, whatever was asked for
    shift: int = 0  # sends a range that begins so many bytes after the one asked for
    redirect: str | None = None  # sends the client there
    content: bytes | None = None  # sends this in place of the file
    no_length: bool = False  # does not say how long the file is


@dataclasses.dataclass
class Logged:
    """One request, and how many bytes of body its answer had."""

    method: str
    path: str
    headers: Message
    sent: int = 0


class FileServer:
    """Serves `files` (path → content) with ETags and ranges."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.requests: list[Logged] = []
        self._closing = threading.Event()
        owner = self

        class Handler(_Handler):
            files = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def gets(self) -> list[Logged]:
        """The GET requests so far."""
        return [request for request in self.requests if request.method == "GET"]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on connections are refused. May be called twice."""
        if not self._closing.is_set():
            self._closing.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def fault(self, method: str) -> Fault:
        if method == "GET" and self.faults:
            return self.faults.pop(0)
        return (self.always if method == "GET" else None) or Fault()

    def stall(self) -> None:
        """Returns when the server is stopped."""
        self._closing.wait(timeout=60)

    def answer(self, handler: _Handler) -> None:
        """Answers one request."""
        fault = self.fault(handler.command)
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
        if handler.misbehave(fault):
            return
        if path in self.files:
            handler.content(self.files[path], fault)
        else:
            handler.status(404)


class FakeHub(FileServer):
    """Serves `root/OWNER/NAME/…` as model repositories, at the revision "main" and by commit.

    The commit follows from the files. A file with one of the suffixes in `lfs` is stored as the hub
    stores large ones: its ETag is a SHA-256 and its content comes by a redirect from another host
    (`localhost` for `127.0.0.1`). ETags and lengths are those of the files in `root`, whatever a
    fault makes of the body. `silent_heads` lets that many HEAD requests wait for ever.
    """

    lfs = (".safetensors", ".h5", ".npz", ".bin", ".keras")

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = Path(root)
        self.token: str | None = None  # what a client has to send, if anything
        self.etag: str | None = None  # instead of the true one
        self.silent_heads = 0
        self.head_status: int | None = None

    @property
    def downloads(self) -> list[Logged]:
        """The requests that were answered with content."""
        return [request for request in self.gets if request.sent]

    def commit(self, repository: str) -> str:
        return hashlib.sha1(
            b"".join(
                name.encode() + b"\0" + path.read_bytes()
                for name, path in sorted(self._entries(repository).items())
            )
        ).hexdigest()

    def environment(self, cache: Path) -> dict[str, str]:
        """What points huggingface_hub of another process to this hub and to `cache`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache.parent),
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def use(self, monkeypatch, cache: Path) -> None:
        """Points huggingface_hub of this process, which has read its environment, here."""
        from huggingface_hub import constants, hf_api

        for name, value in self.environment(cache).items():
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(cache.parent / "token"),
            "HF_STORED_TOKENS_PATH": str(cache.parent / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        # The functions that huggingface_hub has beside its class HfApi are methods of this one.
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)

    def answer(self, handler: _Handler) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
        if match := re.fullmatch(r"/stored/(.+)", path):
            fault = self.fault(handler.command)
            if not handler.misbehave(fault):
                handler.content((self.root / match[1]).read_bytes(), fault)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(handler, *match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(handler, *match.groups())
        else:
            handler.status(404)

    def _entries(self, repository: str) -> dict[str, Path]:
        folder = self.root / repository
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path for path in paths}

    def _refused(self, handler: _Handler, repository: str, revision: str) -> bool:
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            handler.status(401, {"X-Error-Code": "GatedRepo"})
        elif not (self.root / repository).is_dir():
            handler.status(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", self.commit(repository)):
            handler.status(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def _resolve(self, handler: _Handler, repository: str, revision: str, filename: str) -> None:
        if handler.command == "HEAD" and self.silent_heads:
            self.silent_heads -= 1
            handler.misbehave(Fault(silent=True))
        elif handler.command == "HEAD" and self.head_status:
            handler.status(self.head_status)
        elif not self._refused(handler, repository, revision):
            commit = {"X-Repo-Commit": self.commit(repository)}
            path = self._entries(repository).get(filename)
            if path is None:
                handler.status(404, {"X-Error-Code": "EntryNotFound", **commit})
            elif path.suffix in self.lfs:
                self._redirect(handler, path, commit)
            else:
                self._small(handler, path, commit)

    def _redirect(self, handler: _Handler, path: Path, headers: dict[str, str]) -> None:
        content = path.read_bytes()
        etag = self.etag or hashlib.sha256(content).hexdigest()
        place = path.relative_to(self.root).as_posix()
        headers = headers | {
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"http://localhost:{self.port}/stored/{place}",
        }
        handler.status(302, headers)

    def _small(self, handler: _Handler, path: Path, headers: dict[str, str]) -> None:
        content = path.read_bytes()
        etag = self.etag or hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        fault = self.fault(handler.command)
        if not handler.misbehave(fault):
            handler.content(content, fault, etag=etag, headers=headers)

    def _tree(self, handler: _Handler, repository: str, revision: str) -> None:
        if not self._refused(handler, repository, revision):
            entries = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
                for name, path in sorted(self._entries(repository).items())
            ]
            handler.content(json.dumps(entries).encode(), Fault())


class _Handler(BaseHTTPRequestHandler):
    """Does what the server decides and what its faults want, one request to a connection."""

    files: FileServer

    def do_GET(self) -> None:
        self._logged = Logged(self.command, self.path, self.headers)
        self.files.requests.append(self._logged)
        with contextlib.suppress(ConnectionError):  # the client gave up
            self.files.answer(self)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def misbehave(self, fault: Fault) -> bool:
        """Does what a fault wants in place of an answer; False if it wants one."""
        if fault.silent:
            self.files.stall()
        elif fault.status is not None:
            self.status(fault.status)
        elif fault.redirect is not None:
            self.status(302, {"Location": fault.redirect})
        else:
            return False
        return True

    def status(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def content(
        self,
        content: bytes,
        fault: Fault,
        *,
        etag: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        content = content if fault.content is None else fault.content
        etag = f'"{etag or hashlib.sha256(content).hexdigest()}"'
        start = 0 if fault.ignore_range else self._start(etag)
        start += fault.shift if start else 0
        if start and start >= len(content):
            self.status(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        self.send_response(206 if start else 200)
        for name, value in {"ETag": etag, **(headers or {})}.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if not fault.no_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command != "HEAD":
            self._body(content[start:], fault)

    def _start(self, etag: str) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match is None or self.headers.get("If-Range", etag) != etag:
            return 0
        return int(match[1])

    def _body(self, body: bytes, fault: Fault) -> None:
        end = min(x for x in (fault.cut, fault.stall, len(body)) if x is not None)
        end = min(end, len(body))
        self._logged.sent = end  # before the client can see that this is all
        self.wfile.write(body[:end])
        if fault.stall is not None:
            self.files.stall()
