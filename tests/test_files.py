"""Files and directories appear whole or not at all, and nothing is overwritten unasked."""

import contextlib

import pytest

from keras_resnet.files import atomic_directory, atomic_file

MARKER = "manifest.json"

interruptions = pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def bundle(path, text="old"):
    """A directory of the kind that `atomic_directory` may replace."""
    path.mkdir()
    (path / MARKER).write_text(text)
    (path / "only_in_the_old_one").touch()
    return path


def interrupt_file(path, error):
    with atomic_file(path) as temporary:
        temporary.write_text("half of the n")
        raise error


def interrupt_directory(path, error):
    with atomic_directory(path, marker=MARKER, force=True) as temporary:
        (temporary / MARKER).write_text("half of the n")
        raise error


# Files


@pytest.mark.parametrize("force", [True, False])
def test_a_new_file_appears_when_the_block_succeeds(tmp_path, force):
    path = tmp_path / "model.keras"
    with atomic_file(path, force=force) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(tmp_path) == ["model.keras"]


def test_an_old_file_stays_until_the_block_succeeds(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["model.keras"]


@interruptions
def test_an_interrupted_file_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "model.keras"
    path.write_text("old")
    with pytest.raises(error):
        interrupt_file(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model.keras"]


@interruptions
def test_an_interrupted_new_file_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        interrupt_file(tmp_path / "model.keras", error)
    assert names(tmp_path) == []


def test_a_writer_that_removed_its_file_is_told_and_the_old_content_stays(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_file(path) as temporary:
        temporary.unlink()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model.keras"]


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [
        ("model.keras", [".keras"]),
        ("model.weights.h5", [".weights", ".h5"]),
        ("resnet20_v1.5.tflite", [".5", ".tflite"]),
        ("LICENSE", []),
    ],
)
def test_the_temporary_name_keeps_the_suffix(tmp_path, name, suffixes):
    with atomic_file(tmp_path / name) as temporary:
        assert temporary.suffixes == suffixes
        assert temporary.parent == tmp_path
    assert names(tmp_path) == [name]


def test_without_force_an_existing_file_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")
    entered = False
    with pytest.raises(FileExistsError, match=r"model\.keras"), atomic_file(path, force=False):
        entered = True
    assert not entered
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model.keras"]


def test_without_force_a_dangling_link_counts_as_existing(tmp_path):
    path = tmp_path / "model.keras"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError), atomic_file(path, force=False):
        pass
    assert names(tmp_path) == ["model.keras"]


def test_a_directory_in_the_place_of_the_file_stays(tmp_path):
    path = tmp_path / "model.keras"
    path.mkdir()
    with pytest.raises(OSError, match=r"model\.keras"), atomic_file(path) as temporary:
        temporary.write_text("new")
    assert path.is_dir()
    assert names(tmp_path) == ["model.keras"]


def test_the_directories_above_a_file_are_made(tmp_path):
    path = tmp_path / "runs" / "first" / "model.keras"
    with atomic_file(str(path)) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    with atomic_file(tmp_path / "atomic") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


# Directories


@pytest.mark.parametrize("force", [True, False])
def test_a_new_directory_appears_when_the_block_succeeds(tmp_path, force):
    path = tmp_path / "above" / "bundle"
    with atomic_directory(path, marker=MARKER, force=force) as temporary:
        (temporary / MARKER).write_text("new")
        assert not path.exists()
    assert (path / MARKER).read_text() == "new"
    assert names(tmp_path / "above") == ["bundle"]


@interruptions
def test_an_interrupted_new_directory_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        interrupt_directory(tmp_path / "bundle", error)
    assert names(tmp_path) == []


def test_with_force_a_directory_that_holds_the_marker_is_replaced_as_a_whole(tmp_path):
    path = bundle(tmp_path / "bundle")
    with atomic_directory(path, marker=MARKER, force=True) as temporary:
        (temporary / MARKER).write_text("new")
        assert (path / MARKER).read_text() == "old"
    assert names(path) == [MARKER]
    assert (path / MARKER).read_text() == "new"
    assert names(tmp_path) == ["bundle"]


def test_with_force_an_empty_directory_is_replaced(tmp_path):
    path = tmp_path / "bundle"
    path.mkdir()
    with atomic_directory(path, marker=MARKER, force=True) as temporary:
        (temporary / MARKER).write_text("new")
    assert names(path) == [MARKER]
    assert names(tmp_path) == ["bundle"]


@interruptions
def test_an_interrupted_replacement_leaves_the_old_directory(tmp_path, error):
    path = bundle(tmp_path / "bundle")
    with pytest.raises(error):
        interrupt_directory(path, error)
    assert names(path) == [MARKER, "only_in_the_old_one"]
    assert (path / MARKER).read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def home(path):
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


def home_with_a_directory_named_like_the_marker(path):
    home(path)
    (path / MARKER).mkdir()


def file(path):
    path.write_text("precious")


def snapshot(directory):
    return {
        path.relative_to(directory): path.read_text() if path.is_file() else None
        for path in directory.rglob("*")
    }


@pytest.mark.parametrize("make", [home, home_with_a_directory_named_like_the_marker, file])
@pytest.mark.parametrize("force", [True, False])
def test_what_is_not_ours_is_never_replaced(tmp_path, make, force):
    path = tmp_path / "bundle"
    make(path)
    before = snapshot(tmp_path)
    entered = False
    with (
        pytest.raises(FileExistsError, match="bundle"),
        atomic_directory(path, marker=MARKER, force=force),
    ):
        entered = True
    assert not entered
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("make", [bundle, lambda path: path.mkdir()], ids=["ours", "empty"])
def test_without_force_no_directory_is_replaced(tmp_path, make):
    path = tmp_path / "bundle"
    make(path)
    before = snapshot(tmp_path)
    with (
        pytest.raises(FileExistsError, match="force"),
        atomic_directory(path, marker=MARKER, force=False),
    ):
        pass
    assert snapshot(tmp_path) == before


def test_a_link_to_a_directory_costs_nothing_and_leaves_nothing_behind(tmp_path):
    target = bundle(tmp_path / "target")
    before = snapshot(target)
    link = tmp_path / "bundle"
    link.symlink_to(target)
    # Whether a link is refused or replaced is left open.
    with (
        contextlib.suppress(OSError),
        atomic_directory(link, marker=MARKER, force=True) as temporary,
    ):
        (temporary / MARKER).write_text("new")
    assert snapshot(target) == before
    assert names(tmp_path) == ["bundle", "target"]


def test_a_directory_may_be_read_by_whom_the_umask_allows(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    with atomic_directory(tmp_path / "atomic", marker=MARKER) as temporary:
        (temporary / MARKER).touch()
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode
