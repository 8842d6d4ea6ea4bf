"""A board: the wheel, LiteRT, numpy and Pillow in an environment of their own, and nothing else."""

import json
import os
import resource
import subprocess
import sys
import venv
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from toys import SMALL, warmed
from wheels import build_wheel

import keras_resnet
from keras_resnet import export

ROOT = Path(__file__).parent.parent
NEEDED = ("ai-edge-litert", "numpy", "Pillow")
LARGEST = 190 * 2**20


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The directory of commands of the environment."""
    root = tmp_path_factory.mktemp("board")
    venv.create(root / "environment", with_pip=False)
    commands = root / "environment" / "bin"
    install = [sys.executable, "-m", "pip", "--python", str(commands / "python"), "install"]
    install += ["--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*install, *NEEDED], check=True)
    wheel = build_wheel(root / "wheel")
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)
    return commands


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = warmed(keras_resnet.create_model(SMALL, class_names=list("abcdefghij")))
    return export.to_tflite(model, tmp_path_factory.mktemp("bundle") / "small", "float32")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("photographs")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).resize((200, 160)).save(directory / f"{number}.png")
    return directory


def run(command, *arguments, **options):
    done = subprocess.run(
        [str(command), *map(str, arguments)], capture_output=True, text=True, check=True, **options
    )
    return done.stdout


def test_it_is_small(board):
    files = (path for path in board.parent.rglob("*") if path.is_file() and not path.is_symlink())
    assert sum(path.stat().st_size for path in files) < LARGEST


def test_it_classifies_and_verifies(board, bundle, photographs):
    assert run(board / "keras-resnet", "verify", bundle.path).endswith("passed\n")
    out = run(board / "keras-resnet", "classify", bundle.path, photographs, "--json")
    classifier = export.Classifier(bundle)
    for line, path in zip(out.splitlines(), sorted(photographs.iterdir()), strict=True):
        named = json.loads(line)
        label, probability = classifier(path, top=1)[0]
        assert named["classes"][0]["label"] == label
        assert named["classes"][0]["probability"] == pytest.approx(probability, abs=1e-6)


def test_the_first_image_is_named_within_a_second(board, bundle, photographs):
    """Of processor time, which is the time where nothing else runs; here other tests do."""

    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    seconds = []
    for _ in range(3):
        before = spent()
        run(board / "keras-resnet", "classify", bundle.path, photographs / "0.png")
        seconds.append(spent() - before)
    assert min(seconds) < 1.0


def test_what_it_cannot_do_says_what_is_missing(board, bundle):
    missing = json.loads(run(board / "keras-resnet", "info", "--json"))["missing"]
    assert missing["export"] == ["keras", "tensorflow"]
    assert "classify, verify, inspect, benchmark" not in missing
    command = [str(board / "keras-resnet"), "evaluate", str(bundle.path)]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr == (
        "keras-resnet: error: evaluate needs tensorflow, which is not installed here\n"
    )


# The part of OpenCV that the example uses: a film of two frames.
CV2 = """
import numpy as np
class VideoCapture:
    def __init__(self, source):
        self.left = 2 if source == "film.mp4" else 0
    def isOpened(self):
        return self.left > 0
    def read(self):
        self.left -= 1
        frame = np.zeros((60, 80, 3), np.uint8)
        frame[..., 2] = 255  # red: OpenCV's order is blue, green, red
        return self.left >= 0, frame
    def release(self):
        pass
"""


def test_a_camera_is_named_frame_by_frame(board, bundle, tmp_path):
    (tmp_path / "cv2.py").write_text(CV2)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    camera = (ROOT / "examples" / "camera.py", bundle.path, "--json")
    out = run(board / "python", *camera, "--source", "film.mp4", env=environment)
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["classes"] == second["classes"]
    assert first["milliseconds"] > 0
    red = np.zeros((60, 80, 3), np.uint8)
    red[..., 0] = 255
    label, probability = export.Classifier(bundle)(red, top=1)[0]
    assert first["classes"][0]["label"] == label
    assert first["classes"][0]["probability"] == pytest.approx(probability, abs=1e-6)
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run(board / "python", *camera, "--source", "7", env=environment)
    assert failure.value.stderr.endswith("No camera or film that can be read: 7\n")
