"""The examples run as they stand."""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
from pictures import PICTURES
from PIL import Image
from processes import run_python
from toys import tiny, warmed

from keras_resnet import data

ROOT = Path(__file__).parent.parent


def run_example(*arguments: str, cwd: Path) -> str:
    return run_python(*arguments, cwd=cwd).stdout


def test_a_block_of_ones_own_takes_a_few_lines(tmp_path):
    out = run_example(str(ROOT / "examples" / "own_block.py"), cwd=tmp_path)
    assert "Trainable params" in out


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    if os.environ.get("DEMO_OUTPUT"):  # somebody has run it: what it printed
        directory, out = ROOT, Path(os.environ["DEMO_OUTPUT"]).read_text(encoding="utf-8")
    else:
        directory = tmp_path_factory.mktemp("demo")
        out = run_example(str(ROOT / "examples" / "demo.py"), "--out", "demo", cwd=directory)
    table = {}
    for line in out.splitlines():
        cells = line.split()
        if len(cells) == 5 and cells[0] in ("keras", "float32", "int8"):
            name, accuracy, size, time, file = cells
            size = int(size.replace(",", ""))
            table[name] = (float(accuracy.rstrip("%")), size, float(time), directory / file)
    return out, table


class TestDemo:
    """The main job: what `make demo` promises."""

    def test_the_float_network_names_98_percent_of_the_digits(self, demo):
        _, table = demo
        assert table["keras"][0] >= 98.0
        assert table["float32"][0] == table["keras"][0]

    def test_int8_loses_at_most_half_a_point(self, demo):
        _, table = demo
        assert table["int8"][0] >= table["keras"][0] - 0.5

    def test_the_table_tells_true_sizes_and_files(self, demo):
        _, table = demo
        assert set(table) == {"keras", "float32", "int8"}
        for _, size, milliseconds, file in table.values():
            assert file.stat().st_size == size
            assert milliseconds > 0
        assert table["int8"][1] < 0.4 * table["float32"][1]

    def test_three_images_are_named_after_what_they_show(self, demo):
        out, _ = demo
        named = [line.split() for line in out.splitlines() if "_is_a_" in line]
        assert len(named) == 3
        right = [path.split("_is_a_")[1][0] == label for path, label, *_ in named]
        assert sum(right) >= 2  # one of the 2 % that it gets wrong may be among them

    def test_the_network_of_the_package_names_the_drawn_pictures(self, demo):
        out, _ = demo
        lines = re.findall(r"pictures/(\w+)\.png: (\w+) \(", out)
        assert lines == [(p.__name__, p.__name__) for p in PICTURES]

    def test_the_bundles_verify_again(self, demo):
        from keras_resnet import export

        _, table = demo
        for scheme in ("float32", "int8"):
            assert export.verify(table[scheme][3].parent).passed


def test_the_degradation_experiment_draws_and_tabulates_what_it_trained(tmp_path):
    script = str(ROOT / "examples" / "degradation.py")
    changes = ("--set", "epochs=1", "warmup_epochs=0", "--precision", "mixed_bfloat16")
    arguments = (script, "--networks", "resnet8-A", *changes, "--out", "runs", "--keep", "kept")
    out = run_example(*arguments, cwd=tmp_path)
    head, row = (line.split() for line in out.splitlines()[-2:])
    assert (head[:2], row[:2]) == (["network", "parameters"], ["resnet8-A", "76,010"])
    tables = {"resnet8-A-history.csv", "resnet8-A-gradients.csv"}
    files = tables | {"degradation.png", "gradients.png"}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == files
    with (tmp_path / "kept" / "resnet8-A-gradients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["epoch"], rows[0]["layer"]) == ("0", "stem_conv")
    assert {row["epoch"] for row in rows} == {"0", "1"}
    assert all(float(row["norm"]) > 0 for row in rows)

    again = run_example(*arguments, cwd=tmp_path)  # what is finished is read
    assert again.splitlines()[-2:] == out.splitlines()[-2:]

    script = str(ROOT / "examples" / "layer_responses.py")
    out = run_example(script, "runs/resnet8-A", "--csv", "r.csv", cwd=tmp_path)
    name, layers, mean, *_, growth = out.splitlines()[-1].split()
    assert (name, layers) == ("resnet8-A", "7")
    assert 1 < float(growth) < 5  # kernels begin at one
    assert 0.5 < float(mean) < 2  # summed in half precision, a tenth of that
    assert (tmp_path / "layer_responses.png").stat().st_size > 10_000
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 8


def test_calibration_images_come_from_the_networks_own_statistics(tmp_path):
    names = ("first.keras", "second.keras")
    for name in names:
        warmed(tiny()).save(tmp_path / name)
    script = str(ROOT / "examples" / "calibration_images.py")
    arguments = (*names, "--out", "images.npz", "--picture", "images.png", "--count", "16")
    out = run_example(script, *arguments, "--steps", "40", cwd=tmp_path)
    distances = [float(text) for text in re.findall(r"distance: ([\d.]+)", out)]  # means so far
    assert distances[-1] < 0.8 * distances[0]
    with np.load(tmp_path / "images.npz", allow_pickle=False) as arrays:
        images = arrays["images"]
    assert (images.dtype, images.shape) == (np.uint8, (16, 32, 32, 3))
    assert 20 < images.std() < 100
    with Image.open(tmp_path / "images.png") as picture:
        assert picture.size == (8 * 32 * 3, 2 * 32 * 3)


def test_images_to_report_on_are_in_no_training(tmp_path):
    """Two classes of six images, of which five have their original pixels."""
    for index, name in enumerate(("cat", "dog")):
        for number in range(6):
            for part in ("train", "test"):
                path = tmp_path / "coded" / part / name / f"{number:04}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (40 * number, 99 * index, 0)).save(path)
        for number in (0, 2, 3)[: 3 - index]:
            path = tmp_path / "originals" / name / f"{6 * index + number:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32)).save(path)

    script = str(ROOT / "examples" / "split_cifar.py")
    out = run_example(script, "coded", "originals", "--out", "cifar", cwd=tmp_path)
    counts = [line.split() for line in out.splitlines()]
    expected = {"train": "7", "jpeg": "12", "choose": "3", "report": "2", "recoded": "2"}
    assert counts == [list(pair) for pair in expected.items()]
    files = {
        part: {path.name for path in (tmp_path / "cifar" / part / "test").rglob("*.*")}
        for part in ("choose", "report", "recoded")
    }
    assert files == {
        "choose": {"00000.png", "00003.png", "00008.png"},
        "report": {"00002.png", "00006.png"},
        "recoded": {"0002.jpg", "0000.jpg"},  # of the cats and of the dogs
    }
    trained_on = sorted(
        f"{path.parent.name}/{path.stem}"
        for path in (tmp_path / "cifar" / "report" / "train").glob("*/*.jpg")
    )
    expected = {"cat": (1, 4, 5), "dog": (1, 3, 4, 5)}
    assert trained_on == [f"{name}/000{i}" for name, left in expected.items() for i in left]
    source = data.load(f"folder:{tmp_path / 'cifar' / 'report'}")
    assert (source.train.examples, source.test.examples) == (7, 2)
