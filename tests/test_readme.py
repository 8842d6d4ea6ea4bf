"""The README tells the truth: its code runs and its table is current."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_resnet
from keras_resnet import cli, export, training
from keras_resnet.architecture import ARCHITECTURES, BUILDERS
from keras_resnet.counting import count

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_python_example_runs_as_it_stands(tmp_path):
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    named, label = re.fullmatch(r"\[\('(\d)', .*\] is a (\d)", last).groups()
    assert named == label
    assert export.verify(tmp_path / "digits-int8").passed


def test_every_command_parses():
    commands = [
        line.split()
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("keras-resnet")
    ]
    assert len(commands) >= 5
    for _, *arguments in commands:
        assert cli._parser().parse_args(arguments).command == arguments[0]


def test_the_recipes_and_schemes_that_it_names_are_those_that_there_are():
    sentence = re.search(r"Recipes are\s+(.*?);", README, flags=re.DOTALL)[1]
    assert set(re.findall(r"`([\w-]+)`", sentence)) == set(training.RECIPES)
    schemes = re.findall(r"^\| `(\w+)` \| \w+ \| \w+ \| \w+", README, flags=re.MULTILINE)
    assert schemes == list(export.SCHEMES)


TABLE = re.findall(
    r"^\| `(\w+)` \| `(\w+)` \| ([\d,]+) \| ([\d,.]+) M \| (\d+) \| (.*?) \|$",
    README,
    flags=re.MULTILINE,
)


def test_the_table_has_every_network():
    assert [(builder, name) for name, builder, *_ in TABLE] == list(BUILDERS.items())
    for name, _, _, _, size, source in TABLE:
        assert int(size) == ARCHITECTURES[name].input_size
        assert source == ARCHITECTURES[name].source


# ResNet-1202 takes long to build; its figures follow from the others', see below.
@pytest.mark.parametrize(
    "row", [row for row in TABLE if row[0] != "resnet1202"], ids=lambda r: r[0]
)
def test_the_table_counts_right(row):
    name, _, parameters, multiply_adds, *_ = row
    stages = count(keras_resnet.create_model(name))
    assert parameters == f"{sum(s.parameters for s in stages):,}"
    assert multiply_adds == f"{sum(s.multiply_adds for s in stages) / 1e6:,.2f}"


def test_the_largest_network_continues_the_line_of_the_others():
    """Depth 6n + 2: from n to n + 1 every CIFAR network grows by the same three blocks."""
    table = {row[0]: row for row in TABLE}
    figures = {}
    for name in ("resnet20", "resnet32"):
        stages = count(keras_resnet.create_model(name))
        figures[name] = [sum(s.parameters for s in stages), sum(s.multiply_adds for s in stages)]
    per_n = [(b - a) // 2 for a, b in zip(*figures.values(), strict=True)]
    parameters, multiply_adds = (
        small + (200 - 3) * step for small, step in zip(figures["resnet20"], per_n, strict=True)
    )
    assert table["resnet1202"][2] == f"{parameters:,}"
    assert table["resnet1202"][3] == f"{multiply_adds / 1e6:,.2f}"
