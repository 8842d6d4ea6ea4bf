"""Downloads end with the right file or with none, whatever the server and the network do."""

import contextlib
import hashlib
import io
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Fault, FileServer

from keras_resnet.weights import download as module
from keras_resnet.weights.download import (
    DownloadError,
    EntryMissingError,
    cache_directory,
    download,
    hub_file,
)

CONTENT = bytes(range(256)) * 400  # 102.4 kB
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
HALF = len(CONTENT) // 2


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Attempts follow at once."""
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.001)


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    """Nothing here may reach beyond this machine, by a proxy neither."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    resolve = socket.getaddrinfo

    def guarded(host, *arguments, **options):
        assert host in ("127.0.0.1", "localhost"), f"reached for {host}"
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """What some CI services set makes a terminal of everything."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(file_server):
    file_server.files["/net.h5"] = CONTENT
    return file_server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "net.h5"


def get(server, path, *, digest=SHA256, timeout=5.0, progress=False, file="/net.h5"):
    return download(server.url + file, path, digest=digest, timeout=timeout, progress=progress)


def part(path):
    return path.with_name(f"{path.name}.part")


@contextlib.contextmanager
def python(code, *, environment=None):
    """A process that runs `code`, which may use download and hub_file; killed in the end."""
    process = subprocess.Popen(
        # The module alone: the package around it imports what takes seconds.
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.append({str(Path(module.__file__).parent)!r})\n"
            f"from download import download, hub_file\n{code}",
        ],
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def ranges(server):
    """What each GET asked for."""
    return [request.headers.get("Range") for request in server.gets]


def sent(server):
    """How many bytes each GET was given."""
    return [request.sent for request in server.gets]


# The good case


@pytest.mark.parametrize("digest", [SHA256, MD5, SHA256.upper().replace("SHA", "sha")])
def test_a_file_comes_down_whole_and_alone(server, path, digest):
    assert get(server, path, digest=digest) == path
    assert path.read_bytes() == CONTENT
    assert {p.name for p in path.parent.iterdir()} == {"net.h5", "net.h5.lock"}


def test_an_empty_file_is_a_file(server, path):
    server.files["/empty"] = b""
    get(server, path, file="/empty", digest=f"md5:{hashlib.md5(b'').hexdigest()}")
    assert path.read_bytes() == b""


def test_a_file_of_unsaid_length_is_judged_by_its_hash(server, path):
    server.always = Fault(no_length=True)
    assert get(server, path).read_bytes() == CONTENT


def test_a_file_that_is_there_needs_no_server(server, path):
    get(server, path)
    server.stop()
    assert get(server, path) == path
    assert len(server.requests) == 1


def test_a_file_that_was_put_there_by_hand_serves_in_a_directory_that_cannot_be_written(path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    path.parent.chmod(0o500)
    try:
        assert download("https://127.0.0.1:9/net.h5", path, digest=MD5) == path
    finally:
        path.parent.chmod(0o700)
    assert [p.name for p in path.parent.iterdir()] == ["net.h5"]


# Cut, resumed, given up


def test_a_cut_connection_is_resumed_where_it_broke(server, path):
    server.faults = [Fault(cut=HALF)]
    assert get(server, path).read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={HALF}-"]
    assert sent(server) == [HALF, len(CONTENT) - HALF]
    assert server.gets[1].headers["If-Range"] == f'"{SHA256.removeprefix("sha256:")}"'


def test_a_line_that_keeps_breaking_gets_there_as_long_as_it_brings_something(server, path):
    server.always = Fault(cut=len(CONTENT) // 7)
    assert get(server, path).read_bytes() == CONTENT
    assert sum(sent(server)) == len(CONTENT)
    assert len(server.gets) == 8


def test_the_next_call_goes_on_where_a_killed_process_stopped(server, path):
    path.parent.mkdir()
    part(path).write_bytes(CONTENT[:1000])
    assert get(server, path).read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000-"]
    assert sent(server) == [len(CONTENT) - 1000]


def test_a_process_that_is_killed_loses_nothing_that_came(server, path):
    server.faults = [Fault(stall=HALF)]
    with python(f"download({server.url + '/net.h5'!r}, {str(path)!r}, digest={MD5!r})") as process:
        wait_for(lambda: part(path).is_file() and part(path).stat().st_size > 0)
        process.kill()
    assert not path.exists()
    left = part(path).read_bytes()
    assert left == CONTENT[: len(left)]
    assert get(server, path).read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={len(left)}-"]


def test_a_whole_part_that_was_not_renamed_is_not_sent_again(server, path):
    path.parent.mkdir()
    part(path).write_bytes(CONTENT)
    assert get(server, path).read_bytes() == CONTENT
    assert sent(server) == [0]


@pytest.mark.parametrize("left", [b"an earlier version", CONTENT + b"more", b"x" * len(CONTENT)])
def test_a_part_of_something_else_is_thrown_away_and_the_file_comes_anew(server, path, left):
    path.parent.mkdir()
    part(path).write_bytes(left)
    assert get(server, path).read_bytes() == CONTENT
    assert server.gets[-1].headers["Range"] is None
    assert not part(path).exists()


def test_a_server_that_ignores_ranges_sends_the_file_anew(server, path):
    server.faults = [Fault(cut=HALF), Fault(ignore_range=True)]
    assert get(server, path).read_bytes() == CONTENT
    assert sent(server) == [HALF, len(CONTENT)]


def test_another_range_than_the_one_asked_for_is_not_glued_to_the_file(server, path):
    server.faults = [Fault(cut=HALF), Fault(shift=100)]
    assert get(server, path).read_bytes() == CONTENT
    assert sum(sent(server)[2:]) == len(CONTENT)


def test_a_file_that_changes_while_it_is_resumed_comes_anew(server, path):
    server.faults = [Fault(cut=HALF, content=bytes(len(CONTENT)))]
    assert get(server, path).read_bytes() == CONTENT
    assert sent(server) == [HALF, len(CONTENT)]


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, len(CONTENT) + 1), max_size=2), ignore_range=st.booleans())
def test_wherever_the_line_breaks_the_file_is_right(tmp_path_factory, cuts, ignore_range):
    path = tmp_path_factory.mktemp("cuts") / "net.h5"
    with FileServer() as server:
        server.files["/net.h5"] = CONTENT
        server.faults = [Fault(cut=cut, ignore_range=ignore_range) for cut in cuts]
        assert get(server, path).read_bytes() == CONTENT


def test_a_file_that_is_always_cut_short_is_an_error_that_keeps_what_came(server, path):
    server.always = Fault(cut=HALF, ignore_range=True)
    with pytest.raises(DownloadError, match=f"after {HALF} of {len(CONTENT)} bytes") as caught:
        get(server, path)
    assert f"{server.url}/net.h5" in str(caught.value)
    assert "3 attempts" in str(caught.value)
    assert str(path) in str(caught.value)
    assert SHA256 in str(caught.value)
    assert len(server.gets) == 3
    assert not path.exists()
    assert part(path).read_bytes() == CONTENT[:HALF]


# Wrong content


def test_wrong_content_is_an_error_that_leaves_nothing(server, path):
    wrong = b"<html>Please log in</html>"
    server.always = Fault(content=wrong)
    with pytest.raises(DownloadError) as caught:
        get(server, path)
    for part_of_message in (
        f"{server.url}/net.h5",
        SHA256.removeprefix("sha256:"),
        hashlib.sha256(wrong).hexdigest(),
    ):
        assert part_of_message in str(caught.value)
    assert not path.exists()
    assert not part(path).exists()
    assert len(server.gets) == 1


def test_a_damaged_file_is_replaced(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1] + b"?")
    assert get(server, path).read_bytes() == CONTENT


def test_a_damaged_file_does_not_outlive_a_download_that_fails(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT[:HALF])
    server.always = Fault(status=404)
    with pytest.raises(DownloadError, match="404"):
        get(server, path)
    assert not path.exists()


# Servers that refuse, fail, or say nothing


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429])
def test_a_refusal_is_an_error_at_once(server, path, status):
    server.always = Fault(status=status)
    with pytest.raises(DownloadError, match=f"HTTP status {status}.*") as caught:
        get(server, path)
    assert f"{server.url}/net.h5" in str(caught.value)
    assert len(server.gets) == 1
    assert not path.exists()


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_that_is_out_of_order_is_asked_again(server, path, status):
    server.faults = [Fault(status=status), Fault(status=status)]
    assert get(server, path).read_bytes() == CONTENT
    assert len(server.gets) == 3


def test_a_server_that_stays_out_of_order_is_an_error(server, path):
    server.always = Fault(status=503)
    with pytest.raises(DownloadError, match="HTTP status 503"):
        get(server, path)
    assert len(server.gets) == 3


def test_nobody_listens_is_an_error_that_says_what_to_do(server, path):
    server.stop()
    with pytest.raises(DownloadError, match="ConnectionRefusedError") as caught:
        get(server, path)
    assert f"put the file at {path} by hand" in str(caught.value)


def test_a_server_that_says_nothing_is_an_error_that_names_the_timeout(server, path):
    server.always = Fault(silent=True)
    with pytest.raises(DownloadError, match=r"silent for 0\.1 s \(the timeout\)"):
        get(server, path, timeout=0.1)
    assert len(server.gets) == 3
    assert not path.exists()


def test_a_server_that_goes_silent_midway_is_asked_for_the_rest(server, path):
    server.faults = [Fault(stall=HALF)]
    assert get(server, path, timeout=0.2).read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={HALF}-"]


def test_a_server_that_always_goes_silent_is_an_error_that_keeps_what_came(server, path):
    server.always = Fault(stall=HALF, ignore_range=True)
    with pytest.raises(DownloadError, match=r"silent for 0\.2 s"):
        get(server, path, timeout=0.2)
    assert part(path).read_bytes() == CONTENT[:HALF]
    assert not path.exists()


def test_a_disk_that_is_full_is_told_and_nothing_is_tried_again(server, path):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        f"download({server.url + '/net.h5'!r}, {str(path)!r}, digest={MD5!r})"
    )
    with python(code) as process:
        _, errors = process.communicate(timeout=30)
    assert f"DownloadError: cannot write {part(path)}" in errors
    assert len(server.gets) == 1
    assert not path.exists()


def test_a_certificate_that_is_not_trusted_is_told_at_once(path, monkeypatch):
    calls = []

    def connect(connection):
        calls.append(connection.host)
        error = ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_message = "self-signed certificate"
        raise error

    monkeypatch.setattr("http.client.HTTPSConnection.connect", connect)
    with pytest.raises(DownloadError, match=r"self-signed certificate.*SSL_CERT_FILE"):
        download("https://127.0.0.1/net.h5", path, digest=MD5)
    assert calls == ["127.0.0.1"]


# Addresses


def test_a_redirect_is_followed_and_resumed_through(server, path):
    server.faults = [Fault(redirect="/net.h5"), Fault(cut=HALF)]
    server.files["/moved.h5"] = CONTENT
    assert get(server, path, file="/moved.h5").read_bytes() == CONTENT


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_a_redirect_off_the_web_is_refused(server, path, tmp_path, scheme):
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    server.always = Fault(redirect=f"{scheme}://localhost{secret}")
    with pytest.raises(DownloadError, match=f"{scheme}://"):
        get(server, path)
    assert len(server.gets) == 1
    assert not path.exists()


def test_a_redirect_that_gives_up_encryption_is_refused():
    request = urllib.request.Request("https://127.0.0.1/net.h5")
    with pytest.raises(urllib.error.HTTPError, match=r"from https to http://127\.0\.0\.1/"):
        module._Redirects().redirect_request(
            request, io.BytesIO(), 302, "Found", {}, "http://127.0.0.1/net.h5"
        )


def test_redirects_in_a_circle_end(server, path):
    server.always = Fault(redirect="/net.h5")
    with pytest.raises(DownloadError, match="infinite loop"):
        get(server, path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "net.h5", "", "http:"])
def test_only_addresses_of_the_web_are_taken(path, url):
    with pytest.raises(ValueError, match="url must be"):
        download(url, path, digest=MD5)


@pytest.mark.parametrize(
    "digest", ["", "md5:", MD5[:-1], f"{MD5}0", "crc32:00000000", "git:" + "0" * 40, SHA256[7:]]
)
def test_a_digest_has_to_be_one(path, digest):
    with pytest.raises(ValueError, match="digest must be"):
        download("http://127.0.0.1/net.h5", path, digest=digest)


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_a_timeout_has_to_be_positive(path, timeout):
    with pytest.raises(ValueError, match="timeout must be"):
        download("http://127.0.0.1/net.h5", path, digest=MD5, timeout=timeout)


# Several at once


def test_threads_that_want_the_same_file_get_one_right_file_for_one_download(server, path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: get(server, path), range(8)))
    assert paths == [path] * 8
    assert path.read_bytes() == CONTENT
    assert sent(server) == [len(CONTENT)]


def test_a_process_waits_for_another_that_downloads_the_same_file(server, path, capfd):
    server.faults = [Fault(stall=HALF)]
    arguments = f"{server.url + '/net.h5'!r}, {str(path)!r}, digest={MD5!r}, timeout=30"
    with python(f"download({arguments})") as first:
        wait_for(lambda: part(path).is_file() and part(path).stat().st_size > 0)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(get, server, path, progress=True)
            wait_for(lambda: "waiting for another download of net.h5" in capfd.readouterr().err)
            assert len(server.gets) == 1
            first.kill()
            assert second.result(timeout=20).read_bytes() == CONTENT
    assert len(server.gets) == 2
    assert sum(sent(server)) == len(CONTENT) + HALF - int(ranges(server)[1][6:-1])


# What a person sees


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar(server, path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    server.faults = [Fault(cut=HALF)]
    get(server, path, progress=True)
    shown = sys.stderr.getvalue()
    assert "net.h5" in shown
    assert "102.4/102.4 kB" in shown


def test_elsewhere_it_is_one_line(server, path, capsys):
    server.faults = [Fault(cut=HALF)]
    get(server, path, progress=True)
    assert capsys.readouterr() == ("", f"downloading {server.url}/net.h5 (102.4 kB)\n")


def test_the_line_says_what_is_here_already(server, path, capsys):
    path.parent.mkdir()
    part(path).write_bytes(CONTENT[:5000])
    get(server, path, progress=True)
    assert "(102.4 kB, 5.0 kB of it are here already)" in capsys.readouterr().err


def test_without_progress_nothing_is_said(server, path, capsys):
    get(server, path, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_file_that_is_there_is_not_worth_a_word(server, path, capsys):
    get(server, path)
    get(server, path, progress=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"KERAS_RESNET_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/keras_resnet"),
        ({"KERAS_RESNET_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/keras_resnet"),
        ({"KERAS_RESNET_CACHE": "~/weights"}, "/home/me/weights"),
    ],
)
def test_the_cache_is_where_the_environment_says(monkeypatch, environment, expected):
    monkeypatch.delenv("KERAS_RESNET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)


# The hub

LARGE, SMALL = "model.safetensors", "config.json"
FILES = {LARGE: CONTENT, SMALL: b'{"architecture": "resnet50"}', "deep/er/net.h5": CONTENT[::-1]}


@pytest.fixture
def hub(fake_hub):
    for name, content in FILES.items():
        file = fake_hub.root / "timm" / "resnet50" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return fake_hub


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "hf" / "hub"


def get_hub(filename=LARGE, *, repository="timm/resnet50", revision=None, progress=False):
    return hub_file(repository, filename, revision=revision, progress=progress)


def blobs(cache):
    """What is kept under a final name, and what is on its way there."""
    names = [p.name for p in (cache / "models--timm--resnet50" / "blobs").glob("*")]
    return [n for n in names if not n.endswith(".part")], [n for n in names if n.endswith(".part")]


def links(cache):
    return [p for p in cache.glob("models--*/snapshots/**/*") if p.is_symlink() or p.is_file()]


@pytest.mark.parametrize("filename", FILES)
def test_a_file_of_the_hub_comes_down(hub, cache, filename):
    path = get_hub(filename)
    assert path.read_bytes() == FILES[filename]
    assert path.is_relative_to(cache)
    assert path.as_posix().endswith(f"{hub.commit('timm/resnet50')}/{filename}")
    assert len(hub.downloads) == 1


def test_huggingface_hub_finds_the_file_where_it_would_have_put_it(hub, cache):
    from huggingface_hub import hf_hub_download, scan_cache_dir

    path = get_hub()
    hub.stop()
    assert hf_hub_download("timm/resnet50", LARGE, local_files_only=True) == str(path)
    (repository,) = scan_cache_dir(cache).repos
    assert repository.repo_id == "timm/resnet50"
    assert repository.size_on_disk == len(CONTENT)


def test_what_huggingface_hub_has_put_there_serves(hub):
    from huggingface_hub import hf_hub_download

    theirs = hf_hub_download("timm/resnet50", LARGE)
    count = len(hub.downloads)
    assert str(get_hub()) == theirs
    assert len(hub.downloads) == count


def test_a_new_version_on_the_hub_is_fetched_and_the_old_one_stays(hub):
    old = get_hub()
    (hub.root / "timm" / "resnet50" / LARGE).write_bytes(b"new")
    assert get_hub().read_bytes() == b"new"
    assert old.read_bytes() == CONTENT


def test_a_version_that_appears_during_the_download_is_checked_by_its_own_hash(hub, monkeypatch):
    answer = hub.answer

    def answer_and_change(handler):
        answer(handler)
        if handler.path.startswith("/stored"):
            (hub.root / "timm" / "resnet50" / LARGE).write_bytes(b"new")

    monkeypatch.setattr(hub, "answer", answer_and_change)
    assert get_hub().read_bytes() == b"new"


def test_a_hub_that_is_out_of_reach_is_no_matter_for_a_cached_file(hub):
    path = get_hub()
    hub.stop()
    assert get_hub() == path


def test_offline_mode_takes_the_cached_file_and_asks_nobody(hub, monkeypatch):
    path = get_hub()
    count = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert get_hub() == path
    assert len(hub.requests) == count


def test_a_cached_commit_is_not_asked_for(hub):
    commit = hub.commit("timm/resnet50")
    path = get_hub(revision=commit)
    count = len(hub.requests)
    assert get_hub(revision=commit) == path
    assert len(hub.requests) == count


def test_offline_without_the_file_is_an_error_that_says_what_to_do(hub, cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set") as caught:
        get_hub()
    assert not isinstance(caught.value, EntryMissingError)
    for part_of_message in (f"{LARGE} of timm/resnet50", str(cache), "hf download"):
        assert part_of_message in str(caught.value)


def test_out_of_reach_without_the_file_is_an_error_after_a_few_attempts(hub):
    hub.stop()
    with pytest.raises(DownloadError, match=f"{hub.url} could not be asked"):
        get_hub()


def test_a_small_cut_is_resumed(hub):
    hub.faults = [Fault(cut=HALF)]
    assert get_hub().read_bytes() == CONTENT
    assert sent(hub)[-1] == len(CONTENT) - HALF


@pytest.mark.parametrize("filename", [LARGE, SMALL])
def test_a_hub_that_always_cuts_short_leaves_nothing_at_the_final_name(hub, cache, filename):
    hub.always = Fault(cut=10, ignore_range=True)
    with pytest.raises(DownloadError, match=f"after 10 of {len(FILES[filename])} bytes"):
        get_hub(filename)
    kept, parts = blobs(cache)
    assert (kept, len(parts), links(cache)) == ([], 1, [])
    hub.always = None
    assert get_hub(filename).read_bytes() == FILES[filename]
    assert ranges(hub)[-1] == "bytes=10-"


@pytest.mark.parametrize("filename", [LARGE, SMALL])
def test_wrong_content_of_the_right_length_leaves_nothing(hub, cache, filename):
    hub.always = Fault(content=bytes(len(FILES[filename])))
    with pytest.raises(DownloadError, match=r"should be [0-9a-f]{40,64}, but what came has"):
        get_hub(filename)
    assert (blobs(cache), links(cache)) == (([], []), [])


@pytest.mark.parametrize("filename", [LARGE, SMALL])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_damaged_file_in_the_cache_of_the_hub_is_replaced(hub, filename, pinned):
    revision = hub.commit("timm/resnet50") if pinned else None
    path = get_hub(filename, revision=revision)
    path.resolve().write_bytes(bytes(len(FILES[filename])))
    assert get_hub(filename, revision=revision).read_bytes() == FILES[filename]


def test_a_damaged_file_in_the_cache_is_removed_when_there_is_no_network(hub, cache):
    get_hub().resolve().write_bytes(bytes(len(CONTENT)))
    hub.stop()
    with pytest.raises(DownloadError, match="was damaged and has been removed"):
        get_hub()
    assert (blobs(cache), links(cache)) == (([], []), [])


def test_an_etag_that_is_no_hash_is_not_taken_for_one(hub):
    hub.etag = "version-7"
    path = get_hub()
    assert path.read_bytes() == CONTENT
    assert path.readlink().name == "version-7"


@pytest.mark.parametrize("etag", ["../../../outside", "a/b", ""])
def test_an_etag_that_is_no_name_is_refused(hub, tmp_path, etag):
    hub.etag = etag or " "
    with pytest.raises(DownloadError, match="not answered as the hub does"):
        get_hub()
    assert links(tmp_path / "hf" / "hub") == []


def test_where_links_are_not_possible_the_file_is_a_copy_that_is_checked_as_well(hub, monkeypatch):
    supported = "huggingface_hub.file_download.are_symlinks_supported"
    monkeypatch.setattr(supported, lambda directory: False)
    path = get_hub()
    assert not path.is_symlink()
    assert path.read_bytes() == CONTENT
    path.write_bytes(bytes(len(CONTENT)))
    with pytest.raises(DownloadError, match="has been removed; try once more"):
        get_hub()
    assert get_hub().read_bytes() == CONTENT


def test_a_missing_repository_is_told(hub):
    with pytest.raises(DownloadError, match="no repository timm/resnet51 on") as caught:
        get_hub(repository="timm/resnet51")
    assert not isinstance(caught.value, EntryMissingError)
    assert f"{LARGE} of timm/resnet51" in str(caught.value)


def test_a_missing_file_is_an_error_of_its_own(hub):
    with pytest.raises(EntryMissingError, match=r"no model\.bin of timm/resnet50"):
        get_hub("model.bin")


def test_that_a_file_is_missing_is_known_without_a_network_as_well(hub):
    get_hub()
    with pytest.raises(EntryMissingError):
        get_hub("model.bin")
    hub.stop()
    with pytest.raises(EntryMissingError, match=r"no model\.bin of timm/resnet50"):
        get_hub("model.bin")
    with pytest.raises(DownloadError, match="could not be asked") as caught:
        get_hub(SMALL)
    assert not isinstance(caught.value, EntryMissingError)


def test_a_missing_revision_is_told(hub):
    with pytest.raises(DownloadError, match="no revision 'v2'") as caught:
        get_hub(revision="v2")
    assert not isinstance(caught.value, EntryMissingError)


def test_a_closed_repository_asks_for_a_token_and_takes_it(hub, monkeypatch):
    hub.token = "hf_secret"
    with pytest.raises(DownloadError, match="HF_TOKEN"):
        get_hub()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert get_hub().read_bytes() == CONTENT


def test_a_token_stays_with_the_hub(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get_hub()
    tokens = {(r.path.split("/")[1], r.headers.get("Authorization")) for r in hub.gets}
    assert tokens == {("timm", "Bearer hf_secret"), ("stored", None)}


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_out_of_order_is_told(hub, status):
    hub.head_status = status
    with pytest.raises(DownloadError, match=f"HTTP status {status}"):
        get_hub()
    assert len(hub.requests) == 3


def test_something_else_in_place_of_the_hub_is_told(hub, file_server, monkeypatch):
    file_server.files[f"/timm/resnet50/resolve/main/{LARGE}"] = b"<html>Please log in</html>"
    template = file_server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(DownloadError, match="not answered as the hub does"):
        get_hub()


def test_a_silent_hub_is_an_error_within_its_timeouts(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.1)
    hub.silent_heads = 100
    with pytest.raises(DownloadError, match="ReadTimeout"):
        get_hub()
    assert len(hub.requests) == 3


def test_a_silent_hub_is_asked_once_if_the_file_is_cached(hub, monkeypatch):
    path = get_hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.1)
    hub.silent_heads = 100
    count = len(hub.requests)
    assert get_hub() == path
    assert len(hub.requests) == count + 1


def test_a_hub_that_goes_silent_midway_is_asked_for_the_rest(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.faults = [Fault(stall=HALF)]
    assert get_hub().read_bytes() == CONTENT
    assert ranges(hub)[-1] == f"bytes={HALF}-"


def run_hub(hub, cache, **environment):
    """Fetches the large file in a process of its own; what it printed, and its errors."""
    with python(
        f"print(hub_file('timm/resnet50', {LARGE!r}))",
        environment=hub.environment(cache) | environment,
    ) as process:
        return process.communicate(timeout=30)


def test_a_process_takes_the_hub_and_the_cache_from_its_environment(hub, cache):
    path, errors = run_hub(hub, cache)
    assert Path(path.strip()).read_bytes() == CONTENT
    assert Path(path.strip()).is_relative_to(cache)
    assert errors == (
        f"downloading {hub.url}/timm/resnet50/resolve/{hub.commit('timm/resnet50')}/{LARGE} "
        "(102.4 kB)\n"
    )
    hub.stop()
    assert run_hub(hub, cache) == (path, "")
    assert run_hub(hub, cache, HF_HUB_OFFLINE="1") == (path, "")


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../../x", "a\\b", "./x", "a//b", "a/", "a\nb", ".", ".."],
)
def test_only_plain_names_inside_the_repository_are_taken(hub, name):
    with pytest.raises(ValueError, match="filename must be"):
        get_hub(name)
    with pytest.raises(ValueError, match="revision must be"):
        get_hub(revision=name)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "../x", "a/.."])
def test_only_names_of_repositories_are_taken(hub, name):
    with pytest.raises(ValueError, match="repository must be"):
        get_hub(repository=name)
    assert hub.requests == []
