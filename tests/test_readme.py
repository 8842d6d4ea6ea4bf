"""The README tells the truth: all that it shows runs, in its order, and its tables are current."""

import json
import re
import shlex
import shutil
import urllib.request
from pathlib import Path

import pictures
import safetensors.numpy
from foreign import state_dict
from PIL import Image
from processes import run_python

import keras_resnet
from keras_resnet import architecture, cli, export, training
from keras_resnet.export import serving
from keras_resnet.weights import reading

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "examples" / "web"
README = (ROOT / "README.md").read_text(encoding="utf-8")
WEIGHTS = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of the code blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def serve(arguments, monkeypatch):
    """Serves until somebody has fetched the page, on a port that is free."""
    pages = []

    def fetch(server):
        with urllib.request.urlopen(server.url, timeout=60) as answer:
            pages.append(answer.read())

    monkeypatch.setattr(serving.Server, "wait", fetch)
    assert cli.main([*arguments, "--port", "0"]) == 0
    assert b"<title>" in pages[0]


def run_line(line, monkeypatch):
    program, *arguments = shlex.split(line, comments=True)
    if program == "python":
        assert arguments[0] == "examples/pictures.py"
        pictures.main(arguments[1:])
    elif program in ("make", "npm"):
        # What the continuous integration does itself.
        made = (ROOT / ".ci" / "run").read_text() + (ROOT / "Makefile").read_text()
        assert " ".join([program, *arguments[:1]]) in made
    elif program == ".":
        assert arguments == [".venv/bin/activate"]
    elif arguments[0] == "serve":
        serve(arguments, monkeypatch)
    else:
        assert program == "keras-resnet"
        assert cli.main(arguments) == 0, line


def test_everything_that_it_shows_runs_in_its_order(tmp_path, monkeypatch, capsys):
    # As in a checkout where npm has been: the page runs in Chromium elsewhere, by `make clients`.
    monkeypatch.chdir(tmp_path)
    page = shutil.copytree(PAGE, PAGE.relative_to(ROOT), ignore=lambda *_: ["node_modules"])
    runtime = page / "node_modules/@litertjs/core/wasm/litert_wasm_internal.wasm"
    runtime.parent.mkdir(parents=True)
    runtime.write_bytes(b"\0asm")
    (drawn,) = re.findall(r"`(python examples/pictures\.py photographs .*?)`", README)
    run_line(drawn, monkeypatch)
    shutil.copy(next(Path("photographs/ship").iterdir()), "another.jpg")
    shown = {}
    for language, text in blocks(README):
        if language == "console":
            for line in text.splitlines():
                run_line(line, monkeypatch)
                shown[line] = capsys.readouterr().out
        elif language == "python":
            exec(compile(text, "README.md", "exec"), {})
            shown[text] = capsys.readouterr().out
    named = shown["keras-resnet classify cifar10-int8 pictures"]
    right = re.findall(r"(\w+)\.png: \1 (?:9\d\.\d|100\.0)%", named)
    assert right == ["airplane", "automobile", "ship", "truck"]
    assert "ship" in shown["keras-resnet classify photographs-int8 another.jpg --top 3"]
    assert Path("photographs-tflm/model.cc").is_file()
    for bundle in ("photographs-int8", "photographs-android", "from-python"):
        assert export.verify(bundle).passed


def test_the_names_that_it_gives_are_those_that_there_are():
    sentence = re.search(r"Recipes are\s+(.*?);", README, flags=re.DOTALL)[1]
    assert set(re.findall(r"`([\w-]+)`", sentence)) == set(training.RECIPES)
    schemes = re.findall(r"^\| `(\w+)` \| \w+ \| \w+ \| \w+", README, flags=re.MULTILINE)
    assert schemes == list(export.SCHEMES)
    table = README[README.index("| family | networks |") :].split("\n\n")[0]
    names = list(architecture.BUILDERS.values())
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(names)
    assert README.count(f" {len(names)} ") == 2  # networks, in the first sentence and beside others


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

    ((_, code),) = blocks(WEIGHTS)
    done = run_python(
        f"{code}\nprint(len(features.output), tuned.output_shape)",
        cwd=tmp_path,
        **fake_hub.environment(tmp_path / "hf" / "hub"),
    )
    predictions, last = done.stdout.splitlines()[-2:]
    assert len(re.findall(r"\('n\d{8}', ", predictions)) == 3
    assert last == "3 (None, 5)"


def test_the_layouts_of_weights_that_are_named_are_those_that_are_read():
    table = WEIGHTS[WEIGHTS.index("| layout | files |") :].split("\n\n")[0]
    suffixes = set(re.findall(r"`(\.[\w.]+)`", table)) - {".weights.h5"}
    # The rest are other names of the same kinds.
    assert suffixes <= set(reading.SUFFIXES)
    assert set(reading.SUFFIXES) - suffixes == {".pt", ".bin", ".tar", ".hdf5"}
