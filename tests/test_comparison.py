"""Comparing runs: one table, and one picture."""

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from keras_resnet.training import Recipe, load_run
from keras_resnet.training.comparison import compare


def rows(test_errors, images_per_second=(100.0,)):
    """A history with these test errors in percent."""
    speeds = [*images_per_second, *[images_per_second[-1]] * len(test_errors)]
    return [
        {
            "epoch": epoch,
            "loss": 2.0 / epoch,
            "accuracy": 1 - 0.5 * error / 100,
            "images_per_second": speed,
            "learning_rate": 0.1,
            "val_loss": 3.0 / epoch,
            "val_accuracy": 1 - error / 100,
        }
        for epoch, (error, speed) in enumerate(zip(test_errors, speeds, strict=False), start=1)
    ]


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run directory, with a model that nothing can load."""

    def make(name, history, recipe, /, **info):
        path = tmp_path / name
        path.mkdir(parents=True)
        values = {
            "status": "finished",
            "model": "resnet20",
            "data": "digits",
            "recipe": recipe.to_dict(),
            "seed": 0,
            "train_examples": 250,
        }
        (path / "run.json").write_text(json.dumps(values | info))
        (path / "model.keras").write_bytes(b"no model")
        if history:
            with (path / "history.csv").open("w", newline="") as file:
                table = csv.DictWriter(file, list(history[0]))
                table.writeheader()
                table.writerows(history)
        return path

    return make


SHORT = Recipe(name="short", epochs=3, batch_size=100)


@pytest.fixture
def two_runs(make_run):
    first = make_run("first", rows([50, 10, 20], [50.0, 200.0, 400.0]), SHORT)
    other = SHORT.replace(name="other", epochs=4, learning_rate=0.2, augment=["shift", "flip"])
    second = make_run("second", rows([40, 30]), other, seed=7, status="running", model="resnet8")
    return [first, second]


# The table


def test_a_table_shows_the_runs_and_what_their_recipes_do_not_share(two_runs):
    assert str(compare(two_runs)).splitlines() == [
        "run     network   data    recipe  epochs  seed  best test  at epoch  last test  time"
        "  images/s",
        "first   resnet20  digits  short        3     0     90.00%         2     80.00%   6 s"
        "       300",
        "second  resnet8   digits  other   2 of 4     7     70.00%         2     70.00%   4 s"
        "       100",
        "",
        "recipe         first      second",
        "epochs             3           4",
        "learning_rate    0.1         0.2",
        "augment            -  shift,flip",
    ]


def test_a_comparison_is_plain_values_in_json(two_runs):
    values = json.loads(json.dumps(compare(two_runs).to_dict(), allow_nan=False))
    assert values["runs"][1] == {
        "run": "second",
        "network": "resnet8",
        "data": "digits",
        "recipe": "other",
        "status": "running",
        "epochs": 2,
        "planned_epochs": 4,
        "seed": 7,
        "best_accuracy": 0.7,
        "best_epoch": 2,
        "last_accuracy": 0.7,
        "seconds": 4.0,  # two epochs of two batches of 100 images, 100 images/s
        "images_per_second": 100.0,
    }
    assert values["recipe_differences"] == {
        "epochs": [3, 4],
        "learning_rate": [0.1, 0.2],
        "augment": [[], ["shift", "flip"]],
    }


def test_the_speed_leaves_out_the_epoch_in_which_the_step_was_compiled(make_run):
    slow_start = make_run("a", rows([5, 5, 5], [1.0, 100.0, 300.0]), SHORT)
    one_epoch = make_run("b", rows([5], [1.0]), SHORT)
    first, second = compare([slow_start, one_epoch]).to_dict()["runs"]
    assert first["images_per_second"] == 200
    assert first["seconds"] == pytest.approx(200 / 1 + 200 / 100 + 200 / 300)
    assert second["images_per_second"] == 1


def test_runs_that_share_their_recipe_have_one_table(make_run):
    runs = [make_run(name, rows([5]), SHORT, seed=i) for i, name in enumerate("ab")]
    assert len(str(compare(runs)).splitlines()) == 3


def test_a_run_from_before_a_field_existed_was_trained_as_its_default_says(make_run):
    old = {k: v for k, v in SHORT.to_dict().items() if k in ("name", "epochs", "batch_size")}
    runs = [make_run("new", rows([5]), SHORT), make_run("old", rows([5]), SHORT, recipe=old)]
    assert compare(runs).differences == {}
    assert str(compare(runs[1:])).splitlines()[1].startswith("old  resnet20")


def test_runs_of_one_name_are_told_apart_by_their_paths(make_run):
    paths = [make_run(f"{parent}/run", rows([5]), SHORT) for parent in "ab"]
    assert compare(paths).names == [str(path) for path in paths]


def test_a_run_without_a_finished_epoch_has_no_figures(make_run):
    path = make_run("young", [], SHORT)
    row = compare([path]).to_dict()["runs"][0]
    assert (row["epochs"], row["best_accuracy"], row["last_accuracy"]) == (0, None, None)
    assert (row["best_epoch"], row["seconds"], row["images_per_second"]) == (None, None, None)
    assert str(compare([path])).splitlines()[1].split()[4:] == ["0", "of", "3", "0", *"-----"]


@pytest.mark.parametrize(
    ("images_per_second", "time"),
    [(10.0, "40 s"), (2.2, "3:02 min"), (0.01, "11:06 h"), (400 / 3599.6, "1:00 h")],
)
def test_the_time_is_written_as_a_person_says_it(make_run, images_per_second, time):
    path = make_run("a", rows([5, 5], [images_per_second]), SHORT)
    assert f"  {time}  " in str(compare([path]))


def test_nothing_to_compare_is_refused(two_runs):
    for runs in ([], "runs/first"):
        with pytest.raises(ValueError, match=r"`runs` must be a list of run directories\. Rec"):
            compare(runs)
    with pytest.raises(ValueError, match=r"Received twice: .*first"):
        compare([two_runs[0], two_runs[0] / ".." / "first"])
    with pytest.raises(FileNotFoundError, match=r"nowhere.*no run\.json"):
        compare([two_runs[0], two_runs[0].parent / "nowhere"])


def test_runs_that_were_read_are_compared_too(two_runs):
    assert str(compare([load_run(path) for path in two_runs])) == str(compare(two_runs))


# The picture


def colors_of(path):
    """The strong colours in a picture, with how many pixels have each, the commonest first."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    pixels = pixels[np.ptp(pixels, axis=1) > 100]
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return [tuple(map(int, found[i])) for i in np.argsort(-counts)]


def test_a_picture_has_a_color_for_every_run(two_runs, tmp_path):
    compare(two_runs).save_picture(tmp_path / "compare.png")
    assert set(colors_of(tmp_path / "compare.png")[:2]) == {(31, 119, 180), (255, 127, 14)}
    assert sorted(tmp_path.iterdir()) == sorted([*two_runs, tmp_path / "compare.png"])


def test_a_picture_of_many_runs_has_as_many_colors(make_run, tmp_path):
    runs = [make_run(f"run{i}", rows([60 + i, 10 + i]), SHORT) for i in range(12)]
    compare(runs).save_picture(tmp_path / "compare.png")
    assert len(colors_of(tmp_path / "compare.png")) >= 12


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_names_errors_of_zero_and_single_epochs_spoil_no_picture(make_run, tmp_path, suffix):
    runs = [
        make_run("_hidden", rows([50, 0, 0]), SHORT),
        make_run("cost $x^{ in $", rows([10]), SHORT),
        make_run("long" * 20, rows([math.nan, 5]), SHORT),
        make_run("young", [], SHORT),
    ]
    path = tmp_path / f"compare{suffix}"
    compare(runs).save_picture(path)
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert path.read_bytes().startswith(starts[suffix])


def test_a_picture_replaces_a_file_only_with_force(two_runs, tmp_path):
    path = tmp_path / "compare.png"
    path.write_bytes(b"a picture")
    with pytest.raises(FileExistsError, match="force"):
        compare(two_runs).save_picture(path)
    assert path.read_bytes() == b"a picture"
    compare(two_runs).save_picture(path, force=True)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["compare", "compare.png.xyz", "compare.txt"])
def test_a_picture_of_an_unknown_format_is_refused(two_runs, tmp_path, name):
    with pytest.raises(ValueError, match=r"`path` must end in one of .*'\.png'.*Received: "):
        compare(two_runs).save_picture(tmp_path / name)
    assert not (tmp_path / name).exists()
