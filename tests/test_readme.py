"""The README tells the truth: its code runs and its table is current."""

import os
import re
import subprocess
import sys
from pathlib import Path

from keras_resnet import cli, export, training

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
