"""The wheel holds what the tree holds, and works where the tree is not."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from processes import run_python
from wheels import build_wheel

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_it_holds_every_file_of_the_two_packages(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    tree = set()
    for directory, package in ((ROOT / "keras_resnet", "keras_resnet"),
                               (ROOT / "export", "keras_resnet/export")):  # fmt: skip
        for path in directory.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                tree.add(f"{package}/{path.relative_to(directory).as_posix()}")
    assert names == tree


def test_it_works_installed_in_another_directory(wheel, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    # The dependencies of this environment, without what is installed here as editable: .pth files
    # are only read in the new environment's own directory.
    (purelib / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = environment / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps",
         "--no-index", str(wheel)],
        check=True,
    )  # fmt: skip
    script = """
        import pathlib, sys
        import keras_resnet
        import keras_resnet.export
        from keras_resnet import data
        for module in (keras_resnet, keras_resnet.export):
            assert pathlib.Path(sys.prefix) in pathlib.Path(module.__file__).parents, module
        print(keras_resnet.ResNet20().count_params(), data.load("digits").train.examples)
    """
    done = run_python(script, python=python, cwd=tmp_path)
    assert done.stdout.split() == ["271098", "1442"]
    command = subprocess.run(
        [str(environment / "bin" / "keras-resnet"), "list", "resnet8"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ResNet8" in command.stdout
