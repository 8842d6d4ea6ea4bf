"""The server of the browser's page gives what is listed, with the headers that it takes."""

import base64
import hashlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from processes import run_python
from tflite_files import float_file, int8_file, noise, small

from keras_resnet.export.bundle import BundleError, write_files
from keras_resnet.export.serving import Server
from keras_resnet.preprocessing import Preprocessing

MAP = '{"imports": {"a": "./a.js"}}'
INDEX = f'<!doctype html><script type="importmap">{MAP}</script><p>The page.</p>\n'
LABELS = tuple("abcdefghij")
WASM = "node_modules/@litertjs/core/wasm/litert.wasm"


def write_bundle(path, content, labels=LABELS):
    path.mkdir(parents=True)
    pixels = noise(2)
    facts = {"model": "small", "scheme": "float32", "preprocessing": Preprocessing().to_dict()}
    write_files(path, content, labels, (pixels, small().predict_on_batch(pixels / 128 - 1)), facts)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def bundle(folder):
    return write_bundle(folder / "a b" / "größer", float_file(small()))


@pytest.fixture(scope="module")
def page(folder):
    """A page with what may be served beside things that may not."""
    page = folder / "page"
    (page / WASM).parent.mkdir(parents=True)
    (page / WASM).write_bytes(b"\0asm")
    (page / "index.html").write_text(INDEX)
    for name in ("a.js", "b.mjs", "c.css", "d.svg", "e.tflite", ".npmrc"):
        (page / name).write_text(name)
    (folder / "secret.txt").write_text("secret")
    (page / "link.txt").symlink_to(folder / "secret.txt")
    (page / "folder").symlink_to(folder, target_is_directory=True)
    (page / ".hidden").mkdir()
    (page / ".hidden" / "x.txt").write_text("secret")
    return page


@pytest.fixture(scope="module")
def server(bundle, page):
    with Server([bundle], port=0, page=page) as server:
        yield server


def request(server, path, method="GET", **headers):
    """The status, headers and body of an answer; the path is sent as it is."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=30)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


def test_the_page_and_the_bundle_are_served(server, bundle, page):
    status, _, body = request(server, "/")
    assert (status, body) == (200, INDEX.encode())
    assert request(server, "/?query")[2] == body == request(server, "/index.html")[2]
    ((listed),) = json.loads(request(server, "/bundles.json")[2])
    assert server.names == ("größer",)
    assert listed["name"] == "größer"
    for name in ("manifest.json", "model.tflite", "labels.txt"):
        status, _, body = request(server, f"/{listed['url']}{name}")
        assert (status, body) == (200, (bundle / name).read_bytes())
    assert request(server, f"/{listed['url']}golden.npz")[0] == 404


def test_every_file_has_the_headers_that_threads_need(server):
    for path in ("/", "/a.js", f"/{WASM}", "/bundles.json"):
        _, headers, _ = request(server, path)
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_policy_lets_nothing_out_and_no_script_in_but_the_import_map(server):
    _, headers, _ = request(server, "/")
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in headers["Content-Security-Policy"].split(";")
    )
    digest = base64.b64encode(hashlib.sha256(MAP.encode()).digest()).decode()
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["script-src"] == f"'self' 'wasm-unsafe-eval' 'sha256-{digest}'"
    assert not re.search(r"\*|http|data:|unsafe-inline|'unsafe-eval", str(policy))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/a.js", "text/javascript; charset=utf-8"),
        ("/b.mjs", "text/javascript; charset=utf-8"),
        ("/c.css", "text/css; charset=utf-8"),
        ("/d.svg", "image/svg+xml"),
        ("/e.tflite", "application/octet-stream"),
        (f"/{WASM}", "application/wasm"),
        ("/bundles.json", "application/json"),
    ],
)
def test_files_say_what_they_are(path, kind, server):
    assert request(server, path)[1]["Content-Type"] == kind


@pytest.mark.parametrize("path", ["/", f"/{WASM}", "/bundles.json"])
def test_a_head_request_gets_the_same_headers_and_no_body(path, server):
    _, of_get, body = request(server, path)
    status, of_head, nothing = request(server, path, "HEAD")
    assert (status, nothing) == (200, b"")
    for headers in (of_get, of_head):
        del headers["Date"]
    assert of_head.items() == of_get.items()
    assert of_head["Content-Length"] == str(len(body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_can_be_done_but_reading(method, server):
    assert request(server, "/", method)[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/folder/secret.txt",
        "/link.txt",
        "/.npmrc",
        "/.hidden/x.txt",
        "/a.js/",
        "/./a.js",
        "/A.JS",
        "/node_modules",
        "/node_modules/",
        "/bundles/",
        "/missing",
        "/%00",
        "/%ff",
        "http://127.0.0.1/a.js",
    ],
)
def test_what_is_not_listed_is_not_there(path, server):
    status, _, body = request(server, path)
    assert status == 404
    assert b"secret" not in body


@given(
    st.lists(st.sampled_from(["..", ".", "%2e%2e", "%2E.", "folder", "secret.txt", "%2f", "\\"]))
)
def test_no_path_leads_out(server, steps):
    status, _, body = request(server, "/" + "/".join(steps))
    assert status == (404 if steps else 200)
    assert b"secret" not in body


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1.example.com:8000", "10.0.0.1", ""])
def test_another_name_that_points_here_gets_nothing(host, server):
    assert request(server, "/", Host=host)[0] == 421


def test_localhost_is_this_machine_through_whatever_port(server):
    assert request(server, "/", Host="localhost:1234")[0] == 200


def test_a_file_that_is_gone_is_not_found(bundle, page, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    with Server([copy], port=0, page=page) as server:
        (copy / "labels.txt").unlink()
        assert request(server, "/bundles/copy/labels.txt")[0] == 404


def test_bundles_of_one_name_are_told_apart_by_their_folders(bundle, page, tmp_path):
    paths = [shutil.copytree(bundle, tmp_path / name / "int8") for name in ("first", "second")]
    with Server([bundle, *paths], port=0, page=page) as server:
        assert server.names == ("a b/größer", "first/int8", "second/int8")
        listed = json.loads(request(server, "/bundles.json")[2])
        for path, each in zip([bundle, *paths], listed, strict=True):
            _, _, body = request(server, f"/{each['url']}manifest.json")
            assert body == (path / "manifest.json").read_bytes()


def test_a_bundle_named_twice_is_refused(bundle, page):
    with pytest.raises(ValueError, match="each bundle once"):
        Server([bundle, bundle.parent / "." / bundle.name], port=0, page=page)


def test_a_changed_bundle_is_not_served(bundle, page, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "model.tflite").write_bytes(b"changed")
    with pytest.raises(BundleError, match="changed after it was exported"):
        Server([copy], port=0, page=page)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: int8_file(small(), tf.int8), "export with uint8 or float32"),
        (lambda: float_file(small(), None), "fixed batch"),
        (lambda: float_file(small(), 4), "takes 4 images at a time"),
    ],
    ids=["int8 ends", "any batch", "batch 4"],
)
def test_a_bundle_that_browsers_cannot_run_is_refused(content, message, page, tmp_path):
    path = write_bundle(tmp_path / "b", content())
    with pytest.raises(BundleError, match=f"cannot be run in a browser.*{message}"):
        Server([path], port=0, page=page)


def test_a_bundle_that_names_no_classes_is_refused(page, tmp_path):
    path = write_bundle(tmp_path / "b", float_file(small()), labels=())
    with pytest.raises(BundleError, match="gives features"):
        Server([path], port=0, page=page)


def test_errors_say_what_to_do(bundle, page, server, tmp_path):
    port = int(server.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match=f"Port {port} .* in use; choose another, or 0"):
        Server([bundle], port=port, page=page)
    with pytest.raises(ValueError, match="port=70000"):
        Server([bundle], port=70000, page=page)
    with pytest.raises(ValueError, match="at least one bundle"):
        Server([], port=0, page=page)
    with pytest.raises(ValueError, match=r"host='0\.0\.0\.0'"):
        Server([bundle], port=0, page=page, host="0.0.0.0")
    with pytest.raises(FileNotFoundError, match=r"has no index\.html"):
        Server([bundle], port=0, page=tmp_path)
    (tmp_path / "index.html").write_text(INDEX)
    with pytest.raises(FileNotFoundError, match=f"Run: npm ci --prefix {tmp_path}"):
        Server([bundle], port=0, page=tmp_path)


def test_a_client_that_goes_away_leaves_the_others_alone(server, capfd):
    address = urllib.parse.urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # resets
        client.sendall(b"GET /bundles.json HT")
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(request(server, "/")[0])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8
    assert capfd.readouterr().err == ""


def test_it_serves_until_it_is_interrupted_and_frees_its_port(bundle, page):
    code = f"""
from keras_resnet.export.serving import Server
try:
    with Server([{str(bundle)!r}], port=0, page={str(page)!r}) as server:
        print(server.url, flush=True)
        server.wait()
except KeyboardInterrupt:
    print("interrupted")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    address = urllib.parse.urlsplit(process.stdout.readline().strip())
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "interrupted\n", "")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port)).close()


def test_importing_it_takes_the_standard_library_alone():
    run_python("""
        import sys
        from keras_resnet.export import serving
        heavy = {"tensorflow", "keras", "numpy", "PIL", "ai_edge_litert"} & set(sys.modules)
        if heavy:
            sys.exit(str(heavy))
    """)
