"""Writing files so that no crash leaves half of one, and nothing is overwritten unasked."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def refuse_existing(path: str | os.PathLike[str], force: bool) -> None:
    """Raises `FileExistsError` if something is at `path` and `force` is off."""
    if not force and os.path.lexists(path):
        raise FileExistsError(
            f"{os.fspath(path)} exists already; choose another path, or replace it with force "
            "(--force)"
        )


def refuse_existing_directory(
    path: str | os.PathLike[str], *, marker: str, force: bool = False
) -> None:
    """Raises `FileExistsError` if a directory cannot be put at `path`: before the work, not after.

    Args:
        path: the directory to make.
        marker: a file that every directory of this kind holds. With `force`, an existing directory
            is replaced only if it holds the marker or nothing: a wrong path must not cost a user
            her home directory.
        force: whether an existing directory may be replaced.
    """
    path = Path(path)
    refuse_existing(path, force)
    if path.is_dir() and not (path / marker).is_file() and any(path.iterdir()):
        raise FileExistsError(f"{path} is not replaced: it holds no {marker}, so it is not ours")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise FileExistsError(f"{path} is not replaced: it is a link or a file, not a directory")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], *, force: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block succeeds.

    The temporary name keeps the suffix, for writers that choose their format by it. If the block
    raises, the temporary file is removed and `path` stays as it was.
    """
    path = Path(path)
    refuse_existing(path, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.name.split('.')[0]}-", suffix="".join(path.suffixes), dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are private
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_directory(
    path: str | os.PathLike[str], *, marker: str, force: bool = False
) -> Iterator[Path]:
    """Yields a temporary directory beside `path`, which takes its place when the block succeeds.

    What may be replaced is told at `refuse_existing_directory`.
    """
    path = Path(path)
    refuse_existing_directory(path, marker=marker, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        refuse_existing(path, force)  # again: making the directory may have taken minutes
        _swap(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap(new: Path, path: Path) -> None:
    """Puts a directory at `path`; what was there goes only once the new one stands."""
    if not path.exists():
        new.replace(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    path.replace(old)
    try:
        new.replace(path)
    except BaseException:
        old.replace(path)
        raise
    shutil.rmtree(old)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
