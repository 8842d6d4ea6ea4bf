"""The README tells the truth: its code runs and its table is current."""

import json
import re
from pathlib import Path

import safetensors.numpy
from foreign import state_dict
from PIL import Image
from processes import run_python

import keras_resnet
from keras_resnet import cli, export, training
from keras_resnet.weights import reading

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_python_example_runs_as_it_stands(tmp_path):
    code, _ = blocks("python")
    done = run_python(code, cwd=tmp_path)
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
        assert cli.make_parser().parse_args(arguments).command == arguments[0]


def test_the_recipes_and_schemes_that_it_names_are_those_that_there_are():
    sentence = re.search(r"Recipes are\s+(.*?);", README, flags=re.DOTALL)[1]
    assert set(re.findall(r"`([\w-]+)`", sentence)) == set(training.RECIPES)
    schemes = re.findall(r"^\| `(\w+)` \| \w+ \| \w+ \| \w+", README, flags=re.MULTILINE)
    assert schemes == list(export.SCHEMES)


def test_the_example_of_public_weights_runs_as_it_stands(fake_hub, tmp_path):
    """With a hub on this machine, whose ResNet-18 knows nothing."""
    directory = fake_hub.root / "timm" / "resnet18.a1_in1k"
    directory.mkdir(parents=True)
    config = {
        "architecture": "resnet18",
        "num_classes": 1000,
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "interpolation": "bicubic",
            "crop_pct": 0.95,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
    }
    (directory / "config.json").write_text(json.dumps(config))
    arrays = state_dict(keras_resnet.ResNet18(input_shape=(64, 64, 3)))
    safetensors.numpy.save_file(arrays, directory / "model.safetensors")
    Image.new("RGB", (100, 80), "teal").save(tmp_path / "photograph.jpg")

    _, code = blocks("python")
    done = run_python(
        f"{code}\nprint(len(features.output), tuned.output_shape)",
        cwd=tmp_path,
        **fake_hub.environment(tmp_path / "hf" / "hub"),
    )
    predictions, last = done.stdout.splitlines()[-2:]
    assert len(re.findall(r"\('n\d{8}', ", predictions)) == 3
    assert last == "3 (None, 5)"


def test_the_layouts_that_it_names_are_those_that_are_read():
    table = README[README.index("| layout | files |") :].split("\n\n")[0]
    suffixes = set(re.findall(r"`(\.[\w.]+)`", table)) - {".weights.h5"}
    # The rest are other names of the same kinds.
    assert suffixes <= set(reading.SUFFIXES)
    assert set(reading.SUFFIXES) - suffixes == {".pt", ".bin", ".tar", ".hdf5"}
