"""Other people's checkpoints: downloaded once, checked by hash, and at hand without a network.

A file appears under its final name only when it is whole and its hash is right. Until then it is a
`.part` beside it, which an interrupted download leaves behind and the next one goes on from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

import keras_resnet

# Attempts in a row that bring nothing new; a line that breaks every few megabytes still gets there.
_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_CHUNK_BYTES = 1 << 18


class DownloadError(OSError):
    """A file could not be had; the message says which one, from where, why, and what would help."""


class EntryMissingError(DownloadError):
    """The hub's repository is there, but it holds no file of that name."""


def cache_directory() -> Path:
    """Where downloads are kept.

    `$KERAS_RESNET_CACHE`, else `$XDG_CACHE_HOME/keras_resnet`, else `~/.cache/keras_resnet`. Files
    of the Hugging Face hub are not here but in the hub's own cache (`$HF_HUB_CACHE`), which other
    libraries share.
    """
    if own := os.environ.get("KERAS_RESNET_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "keras_resnet"


def download(
    url: str,
    path: str | os.PathLike[str],
    *,
    digest: str,
    timeout: float = 10.0,
    progress: bool = True,
) -> Path:
    """Downloads a file, unless it is there already.

    A file at `path` whose hash is right is returned without touching the network; a damaged one is
    replaced. Data arrive in `<path>.part`. A transfer that breaks off is resumed where it stopped,
    within this call and by the next one; two processes that want the same file do not disturb each
    other (`<path>.lock`). Redirects are followed, but never away from http and https, and never
    from https to http. Proxies come from the environment (`https_proxy`, `no_proxy`).

    Args:
        url: an http or https address.
        path: where the file goes; the directories above it are made.
        digest: `"sha256:<hex>"` or `"md5:<hex>"` (keras.applications publishes MD5).
        timeout: seconds that the server may stay silent.
        progress: whether to show a bar in a terminal, or one line elsewhere, on stderr.

    Returns:
        `path`.

    Raises:
        DownloadError: the file could not be had, or what came has another hash.
        ValueError: `url`, `digest` or `timeout` are not of the form above.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"url must be an http or https address. Received: url={url!r}")
    if timeout <= 0:
        raise ValueError(f"timeout must be a positive number of seconds. Received: {timeout=}")
    path = Path(path)
    source = _Source(
        url=url,
        name=path.name,
        timeout=timeout,
        advice=f"Without a network, put the file at {path} by hand ({digest}).",
    )
    lock = path.with_name(f"{path.name}.lock")
    _fetch(source, path, _Digest.parse(digest), lock=lock, progress=progress)
    return path


def hub_file(
    repository: str, filename: str, *, revision: str | None = None, progress: bool = True
) -> Path:
    """A file of a model repository on the Hugging Face hub, from its cache or downloaded into it.

    The cache is huggingface_hub's, and so is what steers it: `HF_ENDPOINT`, `HF_TOKEN` and the
    stored token, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_HUB_ETAG_TIMEOUT` and
    `HF_HUB_DOWNLOAD_TIMEOUT` (seconds). The transfer is `download`'s: huggingface_hub 2.4 starts an
    interrupted download anew, checks the length alone, and tries a silent server for six minutes.

    If the hub cannot be asked, the cached file of that revision serves; that there is none, which
    the cache knows as well, is then the same error as with a network.

    The hash to check against is the file's ETag, of which the hub's rule is: 64 hexadecimal digits
    are the SHA-256 of a large file, 40 are git's SHA-1 of a small one. It is checked on every call,
    and a damaged file in the cache is replaced, or removed if there is no network. An ETag of
    another form, as a mirror may send it, says nothing about the content: then only the length is
    checked. So it is offline where the file system has no symbolic links, since the links of the
    cache are what keeps the ETag.

    Args:
        repository: `"owner/name"`.
        filename: a path inside the repository, with forward slashes: `"model.safetensors"`.
        revision: a branch, tag or commit; by default the main branch. A whole commit hash that is
            in the cache needs no network.
        progress: whether to show a bar in a terminal, or one line elsewhere, on stderr.

    Returns:
        The file's path in the cache, not to be written to.

    Raises:
        EntryMissingError: the repository holds no such file.
        DownloadError: the repository or the revision does not exist or is closed to this user, the
            file could not be had, or what came has another hash.
        ValueError: `repository`, `filename` or `revision` are not of the form above.
    """
    _check_relative("filename", filename)
    if revision is not None:
        _check_relative("revision", revision)
    entry = _HubEntry(repository, filename, revision)
    cached = entry.cached()
    if cached and re.fullmatch("[0-9a-f]{40}", revision or "") and _is_intact(cached):
        return cached
    try:
        etag, commit = _ask_hub(entry, attempts=1 if cached else _ATTEMPTS)
    except _HubSilentError as error:
        return _offline_file(entry, cached, error)
    except EntryMissingError:
        entry.note_missing()
        raise
    return _hub_download(entry, etag, commit, progress)


# The parts of both


@dataclasses.dataclass(frozen=True)
class _Digest:
    """A hash that a file has to have. `git` is git's of a blob, the others are hashlib's."""

    kind: str
    expected: str

    @classmethod
    def parse(cls, text: str) -> _Digest:
        kind, _, expected = text.lower().partition(":")
        if not re.fullmatch("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", f"{kind}:{expected}"):
            raise ValueError(
                'digest must be "md5:" and 32 hexadecimal digits, or "sha256:" and 64. '
                f"Received: digest={text!r}"
            )
        return cls(kind, expected)

    @classmethod
    def of_etag(cls, etag: str) -> _Digest | None:
        """What a hub's ETag says of the content, or None if it is of no known form."""
        if re.fullmatch("[0-9a-f]{64}", etag):
            return cls("sha256", etag)
        if re.fullmatch("[0-9a-f]{40}", etag):
            return cls("git", etag)
        return None

    def of(self, path: Path) -> str:
        """The hash that the file at `path` has."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return hashlib.file_digest(file, lambda: self._new(size)).hexdigest()

    def _new(self, size: int) -> Any:
        if self.kind == "git":
            return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        return hashlib.new(self.kind, usedforsecurity=False)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a file comes from, and how it is spoken of."""

    url: str
    name: str
    timeout: float
    advice: str
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def error(self, what: str) -> DownloadError:
        return DownloadError(f"cannot download {self.url}: {what}. {self.advice}")


def _fetch(
    source: _Source, path: Path, digest: _Digest | None, *, lock: Path, progress: bool
) -> None:
    """Makes the file at `path` the right one; without a digest, any file there is."""
    if _is_right(path, digest):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(lock, source, progress):
        if _is_right(path, digest):  # while this process waited, another one fetched it
            return
        # Whatever happens next, nobody shall take the damaged file for the right one.
        path.unlink(missing_ok=True)
        part = path.with_name(f"{path.name}.part")
        resumed = part.exists()
        _transfer(source, part, progress)
        if resumed and not _is_right(part, digest):
            # Most likely the beginning is of an earlier version, or was damaged on the disk.
            part.unlink()
            _transfer(source, part, progress)
        if digest is not None and (received := digest.of(part)) != digest.expected:
            part.unlink()
            raise source.error(
                f"its {digest.kind} should be {digest.expected}, but what came has {received}; "
                "the file has changed there, or something on the way answered in its place "
                "(a login page, a proxy)"
            )
        part.replace(path)


def _is_right(path: Path, digest: _Digest | None) -> bool:
    return path.is_file() and (digest is None or digest.of(path) == digest.expected)


@contextlib.contextmanager
def _exclusive(path: Path, source: _Source, progress: bool) -> Iterator[None]:
    """Keeps other processes and threads out; the lock goes with its holder, however that ends."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            _console().print(f"waiting for another download of {source.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# The transfer


class _BrokenTransferError(Exception):
    """An attempt failed in a way that another one may not."""


def _transfer(source: _Source, part: Path, progress: bool) -> None:
    """Completes `part`; what it holds already is not sent again, if the server can do that."""
    with _Progress(source, enabled=progress) as shown:
        transfer = _Transfer(source, part, shown)
        most, failures = transfer.size(), 0
        while True:
            try:
                transfer.attempt()
                return
            except _BrokenTransferError as error:
                failures = 1 if transfer.size() > most else failures + 1
                most = max(most, transfer.size())
                if failures >= _ATTEMPTS:
                    kept = f", {_amount(transfer.size())} are kept for the next time"
                    raise source.error(
                        f"{error} ({failures} attempts in a row{kept if transfer.size() else ''})"
                    ) from error
            time.sleep(_PAUSE_SECONDS * 2 ** (failures - 1))


class _Transfer:
    """The attempts at one file."""

    def __init__(self, source: _Source, part: Path, progress: _Progress):
        self._source, self._part, self._progress = source, part, progress
        self._opener = _opener()
        self._etag: str | None = None

    def size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def attempt(self) -> None:
        """Asks once for what is missing and writes it as it comes."""
        have = self.size()
        response = self._open(have)
        if response is None:
            return
        with response:
            have, total = self._place(response, have)
            self._progress.start(have, total)
            try:
                with self._part.open("ab" if have else "wb") as file:
                    for chunk in self._chunks(response):
                        file.write(chunk)
                        self._progress.advance(len(chunk))
            except OSError as error:
                raise DownloadError(f"cannot write {self._part}: {error}") from error
        if total is not None and self.size() != total:
            raise _BrokenTransferError(
                f"the connection closed after {self.size()} of {total} bytes"
            )

    def _open(self, have: int) -> http.client.HTTPResponse | None:
        """The server's answer; None if it says that nothing is missing."""
        try:
            response: http.client.HTTPResponse = self._opener.open(
                self._request(have), timeout=self._source.timeout
            )
            return response
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and have:
                    self._check_end(error, have)
                    return None
                status = f"the server answered with HTTP status {error.code} {error.reason}"
            if error.code < 500:
                raise self._source.error(status) from error
            raise _BrokenTransferError(status) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def _request(self, have: int) -> urllib.request.Request:
        # A compressed answer would have neither the length nor the hash of the file.
        request = urllib.request.Request(
            self._source.url,
            headers={
                "User-Agent": f"keras-resnet/{keras_resnet.__version__}",
                "Accept-Encoding": "identity",
            },
        )
        for name, value in self._source.headers.items():
            # A token is for the server that was asked, not for those that it redirects to.
            if name.lower() == "authorization":
                request.add_unredirected_header(name, value)
            else:
                request.add_header(name, value)
        if have:
            request.add_header("Range", f"bytes={have}-")
            if self._etag is not None:
                request.add_header("If-Range", self._etag)
        return request

    def _place(self, response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
        """Where in the file the answer begins, and how long the file is, if that is said."""
        etag = response.headers.get("ETag")
        self._etag = etag if etag and etag.startswith('"') else None  # a weak one cannot guard
        if response.status == 200:
            return 0, response.length
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status != 206 or given is None or int(given[1]) != have:
            self._part.unlink(missing_ok=True)
            raise _BrokenTransferError(
                f"asked for the bytes from {have} on, the server answered with HTTP status "
                f"{response.status}, Content-Range {response.headers.get('Content-Range')!r}"
            )
        return have, None if given[2] == "*" else int(given[2])

    def _check_end(self, error: urllib.error.HTTPError, have: int) -> None:
        """Nothing follows what is there: it is the whole file, or it is not of this file."""
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        self._part.unlink()
        raise _BrokenTransferError(
            f"the server has no more than the {have} bytes that were there already"
        )

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            try:
                # read1, since read would lose what it has gathered when the connection breaks.
                chunk = response.read1(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise self._broken(error) from error
            if not chunk:
                return
            yield chunk

    def _broken(self, error: Exception) -> Exception:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            return _BrokenTransferError(
                f"the server was silent for {self._source.timeout:g} s (the timeout)"
            )
        if isinstance(reason, ssl.SSLCertVerificationError):
            return self._source.error(
                f"the server's certificate is not trusted ({reason.verify_message}); if it is of "
                "your own network, name the certificates in SSL_CERT_FILE"
            )
        return _BrokenTransferError(f"{type(reason).__name__}: {reason}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Stays on the web, and does not give up encryption."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme != "https" and (new.scheme != "http" or old.scheme != "http"):
            reason = f"{msg}: a redirect from {old.scheme} to {newurl} is not followed"
            raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if request is not None and token and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            request.add_unredirected_header("Authorization", token)
        return request


def _opener() -> urllib.request.OpenerDirector:
    # Not build_opener, whose openers also take file:, ftp: and data: addresses.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


class _Progress:
    """What a person sees of a download: a bar in a terminal, one line elsewhere."""

    def __init__(self, source: _Source, *, enabled: bool):
        self._source = source
        self._console = _console() if enabled else None
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        if self._console is not None and self._console.is_terminal:
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(self._source.name, total=None)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, have: int, total: int | None) -> None:
        """The server has begun to send, from byte `have` on."""
        if self._bar is not None:
            self._bar.update(self._task, completed=have, total=total)
        elif self._console is not None:
            amounts = [_amount(total)] if total is not None else []
            amounts += [f"{_amount(have)} of it are here already"] if have else []
            remark = f" ({', '.join(amounts)})" if amounts else ""
            self._console.print(f"downloading {self._source.url}{remark}")
            self._console = None  # one line, however many attempts it takes

    def advance(self, count: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, count)


def _console() -> Any:
    from rich.console import Console

    # Addresses and names are not markup.
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _amount(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)


# The hub


class _HubSilentError(Exception):
    """The hub did not say what it holds; a file from the cache may do."""

    def __init__(self, message: str, *, temporary: bool = False):
        super().__init__(message)
        self.temporary = temporary


@dataclasses.dataclass(frozen=True)
class _HubEntry:
    """A file of a repository, as it was asked for."""

    repository: str
    filename: str
    revision: str | None

    def __str__(self) -> str:
        revision = f" (revision {self.revision})" if self.revision else ""
        return f"{self.filename} of {self.repository}{revision}"

    @property
    def advice(self) -> str:
        return (
            "Without a network, bring the file from elsewhere "
            f"(`hf download {self.repository} {self.filename}`) and give its path."
        )

    def url(self, revision: str | None) -> str:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HFValidationError

        try:
            return hf_hub_url(self.repository, self.filename, revision=revision)
        except HFValidationError as error:
            raise ValueError(
                f'repository must be "owner/name" on the hub. Received: {self.repository!r}'
            ) from error

    def cached(self) -> Path | None:
        """The link to the file in the hub's cache, unchecked."""
        from huggingface_hub import try_to_load_from_cache

        self.url(None)  # complains of a name that cannot be
        found = try_to_load_from_cache(self.repository, self.filename, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def note_missing(self) -> None:
        """Has huggingface_hub note in its cache that the repository holds no such file."""
        from huggingface_hub import hf_hub_download

        # The note is for a time without a network; what it fails with is being raised already.
        with contextlib.suppress(*_hub_errors()):
            hf_hub_download(self.repository, self.filename, revision=self.revision)

    def is_noted_missing(self) -> bool:
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, self.filename, revision=self.revision)
        return found is _CACHED_NO_EXIST


def _check_relative(argument: str, value: str) -> None:
    parts = PurePosixPath(value).parts
    if (
        value != "/".join(parts)
        or not parts
        or value.startswith("/")
        or ".." in parts
        or "\\" in value
        or not value.isprintable()
    ):
        raise ValueError(
            f"{argument} must be a plain relative name with forward slashes, without '..'. "
            f"Received: {argument}={value!r}"
        )


def _ask_hub(entry: _HubEntry, *, attempts: int) -> tuple[str, str]:
    """The file's ETag, and the commit that the revision is at."""
    from huggingface_hub import constants, get_hf_file_metadata

    url = entry.url(entry.revision)
    for attempt in range(attempts):
        if attempt:
            time.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            metadata = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            break
        except _hub_errors() as error:
            failure = _translated(error, entry)
            temporary = isinstance(failure, _HubSilentError) and failure.temporary
            if not temporary or attempt + 1 == attempts:
                raise failure from error
    etag, commit = metadata.etag, metadata.commit_hash
    # Both become names of files.
    if not re.fullmatch(r"\w[\w.+=-]*", etag or "") or not re.fullmatch(r"\w+", commit or ""):
        raise _HubSilentError(
            f"{url} is not answered as the hub does (ETag {etag!r}, commit {commit!r}); if "
            "HF_ENDPOINT is set, see whether it is a hub, else whether a proxy or a login page "
            "stands between"
        )
    return str(etag), str(commit)


def _hub_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # OSError and the HTTPError of httpx, whose package is another one in huggingface_hub 1 and 2.
    return HfHubHTTPError.__bases__


def _translated(error: Exception, entry: _HubEntry) -> Exception:
    """What to raise for an error of huggingface_hub."""
    from huggingface_hub import constants, errors

    hub, repository = constants.ENDPOINT, entry.repository
    if isinstance(error, errors.EntryNotFoundError):
        return EntryMissingError(f"there is no {entry} on {hub}")
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(
            f"{repository} on {hub} has no revision {entry.revision!r}; give a branch, a tag or a "
            "whole commit hash"
        )
    if isinstance(error, errors.GatedRepoError):
        return _HubSilentError(
            f"{repository} on {hub} is open only to those who accept its terms on its page and "
            "then log in (`hf auth login`, or HF_TOKEN)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return _HubSilentError(
            f"there is no repository {repository} on {hub}; see whether the name is right and, if "
            "it is private, log in (`hf auth login`, or HF_TOKEN)"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _HubSilentError(f"HF_HUB_OFFLINE is set. {entry.advice}")
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    what = f"HTTP status {status}" if status else f"{type(error).__name__}: {error}"
    return _HubSilentError(
        f"{hub} could not be asked ({what}). {entry.advice}",
        temporary=status is None or status >= 500,
    )


def _offline_file(entry: _HubEntry, cached: Path | None, error: _HubSilentError) -> Path:
    """The file from the cache, though the hub could not be asked."""
    from huggingface_hub import constants

    if cached is None:
        if entry.is_noted_missing():
            raise EntryMissingError(f"there is no {entry} on {constants.ENDPOINT}") from error
        raise DownloadError(
            f"{entry} is not in the cache {constants.HF_HUB_CACHE}, and {error}"
        ) from error
    if _is_intact(cached):
        return cached
    blob = _blob(cached)
    cached.unlink()
    if blob is not None:
        blob.unlink()
    raise DownloadError(
        f"{entry} in the cache {constants.HF_HUB_CACHE} was damaged and has been removed, and "
        f"{error}"
    ) from error


def _hub_download(entry: _HubEntry, etag: str, commit: str, progress: bool) -> Path:
    """Puts the file into the hub's cache, where huggingface_hub makes the links to it."""
    from huggingface_hub import constants, get_token, hf_hub_download
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    folder = repo_folder_name(repo_id=entry.repository, repo_type="model")
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    source = _Source(
        url=entry.url(commit),
        name=entry.filename,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        advice=entry.advice,
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    blob, digest = cache / folder / "blobs" / etag, _Digest.of_etag(etag)
    # The lock is where huggingface_hub has its own for this blob: other programs wait as well.
    _fetch(source, blob, digest, lock=cache / ".locks" / folder / f"{etag}.lock", progress=progress)
    try:
        path = Path(hf_hub_download(entry.repository, entry.filename, revision=entry.revision))
    except _hub_errors() as error:
        raise source.error(f"{type(error).__name__}: {error}") from error
    # Not the blob: of a commit made just now, or a copy, where there are no symbolic links.
    if not path.samefile(blob) and not _is_intact(path, otherwise=digest):
        path.unlink()
        raise source.error(f"{path} was not the file, and has been removed; try once more")
    return path


def _blob(link: Path) -> Path | None:
    """What a link of the hub's cache points to.

    One step only: a blob may be a link in turn, into a store whose names are no hashes of ours.
    """
    return link.parent / link.readlink() if link.is_symlink() else None


def _is_intact(link: Path, otherwise: _Digest | None = None) -> bool:
    """Whether a file of the hub's cache has the hash that its name says.

    A file that is no link has no such name; then `otherwise` counts.
    """
    blob = _blob(link)
    return _is_right(link, otherwise if blob is None else _Digest.of_etag(blob.name))
