"""What docs/results.md says of a training is what the training's history says."""

import csv
import re
import shlex
import statistics
from pathlib import Path

import pytest

from keras_resnet import cli, training

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
EXAMPLES = {"coded": 46_000, "digits": 1_442}  # to train on
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if "[csv](" in line
]
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)[1:]
    for line in block.splitlines()
]


@pytest.mark.parametrize(("row", "command"), list(zip(ROWS, COMMANDS, strict=True)))
def test_a_row_tells_what_the_history_and_the_command_say(row, command):
    network, data, recipe, epochs, seed, hours, accuracy, _, link = row
    accuracies, seconds = [], 0.0
    for path in re.findall(r"\[csv\]\((.*?)\)", link):
        with (DOCS / path).open(newline="") as file:
            history = list(csv.DictReader(file))
        assert int(history[-1]["epoch"]) == len(history) == int(epochs)
        accuracies.append(100 * float(history[-1]["val_accuracy"]))
        examples = EXAMPLES[data.split(",")[0]]
        seconds += sum(examples / float(each["images_per_second"]) for each in history)
    assert len(accuracies) == len(seed.split(", "))
    mean = f"{statistics.fmean(accuracies):.2f} %"
    spread = f" ({min(accuracies):.2f} to {max(accuracies):.2f})" if len(accuracies) > 1 else ""
    assert accuracy == mean + spread
    assert f"{seconds / 3600:.2f}" == hours
    # And the command is of that network, that recipe and that seed.
    told = " ".join(command)
    assert network.strip("`") in command
    recipe = recipe.split(",")[0].strip("`")
    assert recipe in command
    assert f"epochs={epochs}" in told or training.RECIPES[recipe].epochs == int(epochs)
    assert seed.replace(",", "") in re.findall(r"for seed in ([\d ]+);", told) or seed == "0"


def test_what_was_not_run_has_a_command_that_would():
    commands = re.findall(r"\*not run\*: `keras-resnet (.*?)`", PAGE)
    assert len(commands) >= 3
    for command in commands:
        assert cli.make_parser().parse_args(shlex.split(command)).command == "train"
