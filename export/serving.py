"""Serving bundles, and the page that runs them, to a browser on this machine.

WASM threads and the camera are given to pages from a secure origin with the right headers only;
`http://127.0.0.1` is such an origin, so this machine's own browser needs no certificate.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_resnet.export.bundle import Bundle

PAGE = Path("examples/web")

_RUNTIME = "node_modules/@litertjs/core/wasm"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
_OTHER_TYPE = "application/octet-stream"  # .tflite among them
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}")
# An import map has to stand in the page itself, so the policy names it by its digest.
_IMPORT_MAP = re.compile(rb'<script type="importmap">(.*?)</script>', re.DOTALL)


class Server:
    """Serves bundles and a page that runs them, from when it is made until it is closed.

        with Server(["digits-int8"]) as server:
            print(server.url)
            server.wait()

    The page's files and the bundles' are listed when the server is made, and nothing else is ever
    opened: a path that leads out of them is merely a path that is not in the list.

    Attributes:
        url: where the page is.
        names: of the bundles, in their order: the last part of each path, or as many of the last
            parts as tell them apart.
    """

    def __init__(
        self,
        bundles: Sequence[str | os.PathLike[str]],
        *,
        port: int = 8000,
        page: str | os.PathLike[str] | None = None,
        host: str = "127.0.0.1",
    ):
        """Opens the bundles and the port.

        Args:
            bundles: directories, checked against their manifests before anything is served.
            port: of TCP; 0 for any that is free.
            page: directory of the page, with its dependencies installed; `examples/web` of the
                current directory without one.
            host: an address of this machine that others cannot reach.

        Raises:
            BundleError: if a directory is no bundle, was changed after it was exported, or cannot
                be run by LiteRT.js; the message says what to export instead.
            FileNotFoundError: if there is no such bundle or page, or the page's dependencies were
                not installed.
            OSError: if the port is taken.
            ValueError: if `host` is not this machine alone, or a bundle is named twice.
        """
        if not bundles:
            raise ValueError("Argument `bundles` must name at least one bundle. Received: none")
        if not _LOOPBACK.fullmatch(host):
            raise ValueError(
                "Argument `host` must be an address of this machine alone, such as 127.0.0.1: "
                "elsewhere browsers give a page neither threads nor camera. Received: "
                f"host={host!r}"
            )
        opened = _open_bundles(bundles)
        page = PAGE if page is None else Path(page)
        self.names = tuple(opened)
        self._files: dict[str, Path | bytes] = {**_page_files(page), **_bundle_files(opened)}
        self._headers = _headers((page / "index.html").read_bytes())
        self._server = _listen(host, port, self)
        self.url = f"http://{host}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def wait(self) -> None:
        """Returns when the server is closed by another thread; Ctrl-C passes through."""
        self._thread.join()

    def close(self) -> None:
        """Stops listening. May be called twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: _Handler) -> None:
        """Answers a GET or HEAD."""
        path = urllib.parse.unquote(request.path.partition("?")[0])
        path = "/index.html" if path == "/" else path
        file = self._files.get(path)
        name, _, _ = request.headers.get("Host", "").partition(":")
        if not _LOOPBACK.fullmatch(name):
            # Another site's name that was made to point here: its pages would read the answer.
            request.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif file is None or (isinstance(file, Path) and not file.is_file()):
            request.send_error(HTTPStatus.NOT_FOUND)
        else:
            content = file.read_bytes() if isinstance(file, Path) else file
            media_type = _TYPES.get(Path(path).suffix, _OTHER_TYPE)
            request.send(content, {"Content-Type": media_type, **self._headers})


class _Handler(BaseHTTPRequestHandler):
    """Parses requests, and leaves it to the server that it was made for to answer them."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a byte
    owner: Server

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the browser has gone elsewhere
            super().handle()

    def do_GET(self) -> None:
        self.owner.answer(self)

    def do_HEAD(self) -> None:
        self.owner.answer(self)

    def version_string(self) -> str:
        return "keras-resnet"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests of one's own browser are no news."""

    def send(self, content: bytes, headers: Mapping[str, str]) -> None:
        """An answer with a body, which a HEAD does not get."""
        self.send_response(HTTPStatus.OK)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _open_bundles(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Bundle]:
    """The bundles by the names under which they are served, checked."""
    from keras_resnet.export.bundle import Bundle

    opened = [Bundle.open(path) for path in paths]
    for bundle in opened:
        _check_runs_in_browsers(bundle)
    return dict(zip(_names([bundle.path.resolve() for bundle in opened]), opened, strict=True))


def _check_runs_in_browsers(bundle: Bundle) -> None:
    """Raises `BundleError` for a file that the page cannot run."""
    from keras_resnet.export.bundle import BundleError
    from keras_resnet.export.inspection import inspect

    problems = [
        f"{finding.text} ({', '.join(finding.where)})"
        for finding in inspect(bundle.model_path, "web").findings
        if finding.severity == "refused"
    ]
    batch, *_, channels = bundle.manifest["input"]["shape"]
    if not bundle.labels:
        problems.append("It gives features: the page shows classes, export probabilities.")
    if not problems and batch != 1:
        problems.append(f"It takes {batch} images at a time: export it with batch 1.")
    if channels not in (1, 3):
        problems.append(f"It takes {channels} channels: the page gives RGB or grey.")
    if problems:
        raise BundleError(f"{bundle.path} cannot be run in a browser. {' '.join(problems)}")


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(
                f"Argument `bundles` must name each bundle once. Received twice: {path}"
            )
    count = 1
    while len({path.parts[-count:] for path in paths}) < len(paths):
        count += 1
    return ["/".join(path.parts[-count:]).strip("/") for path in paths]


def _bundle_files(bundles: Mapping[str, Bundle]) -> dict[str, Path | bytes]:
    """What is served of each bundle, and the list of them, by the paths of the URLs."""
    from keras_resnet.export.bundle import LABELS, MANIFEST, MODEL

    files: dict[str, Path | bytes] = {}
    listed: list[dict[str, Any]] = []
    for name, bundle in bundles.items():
        listed.append({"name": name, "url": f"bundles/{urllib.parse.quote(name)}/"})
        for file in (MANIFEST, MODEL, LABELS):
            files[f"/bundles/{name}/{file}"] = bundle.path / file
    files["/bundles.json"] = json.dumps(listed, indent=2).encode()
    return files


def _page_files(page: Path) -> dict[str, Path | bytes]:
    """The files of the page by the paths of their URLs; hidden ones and links out are left out."""
    if not (page / "index.html").is_file():
        raise FileNotFoundError(
            f"No page at {page}: it has no index.html. Run the command in a checkout of "
            f"keras_resnet, where {PAGE} is, or name the page's directory"
        )
    if not (page / _RUNTIME).is_dir():
        raise FileNotFoundError(
            f"The page's dependencies are not installed: {page / _RUNTIME} is missing. Run: npm ci "
            f"--prefix {page}"
        )
    root = page.resolve()
    files: dict[str, Path | bytes] = {}
    for folder, folders, names in os.walk(page):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.resolve().is_relative_to(root):
                files[f"/{path.relative_to(page).as_posix()}"] = path
    return files


def _headers(index: bytes) -> dict[str, str]:
    """What goes with every file: nothing leaves this machine, and WASM may have threads."""
    digests = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(found).digest()).decode()}'"
        for found in _IMPORT_MAP.findall(index)
    )
    policy = {
        "default-src": "'none'",
        "script-src": f"'self' 'wasm-unsafe-eval'{digests}",
        "worker-src": "'self'",
        "connect-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "media-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        # These two make the page cross-origin isolated, without which it has no shared memory.
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _listen(host: str, port: int, owner: Server) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"owner": owner})
    try:
        return ThreadingHTTPServer((host, port), handler)
    except OverflowError:
        raise ValueError(f"Argument `port` must be 0..65535. Received: port={port}") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise OSError(
            error.errno, f"Port {port} of {host} is in use; choose another, or 0 for a free one"
        ) from None
