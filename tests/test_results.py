"""What docs/results.md says of a training is what the training's history says."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from keras_resnet import cli

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
    (path,) = re.findall(r"\[csv\]\((.*)\)", link)
    with (DOCS / path).open(newline="") as file:
        history = list(csv.DictReader(file))
    assert int(history[-1]["epoch"]) == len(history) == int(epochs)
    assert f"{float(history[-1]['val_accuracy']):.2%}" == accuracy.replace(" ", "")
    examples = EXAMPLES[data.split(",")[0]]
    seconds = sum(examples / float(each["images_per_second"]) for each in history)
    assert f"{seconds / 3600:.2f}" == hours
    # And the command is of that network, that recipe and that seed.
    told = " ".join(command)
    assert network.strip("`") in command
    assert recipe.split(",")[0].strip("`") in command
    assert f"epochs={epochs}" in told
    assert ("--seed" in command) == (seed != "0")
    if command[0] == "keras-resnet":
        cli.make_parser().parse_args(command[1:])


def test_what_was_not_run_has_a_command_that_would():
    commands = re.findall(r"\*not run\*: `keras-resnet (.*?)`", PAGE)
    assert len(commands) >= 3
    for command in commands:
        assert cli.make_parser().parse_args(shlex.split(command)).command == "train"
