"""Importing the package costs next to nothing, and each part pulls in only what it may."""

import ast
import json
import sys
from pathlib import Path

import pytest
from processes import run_python

import keras_resnet
from keras_resnet.architecture import BUILDERS

HEAVY = ("tensorflow", "keras", "numpy", "PIL")


def loaded_after(statements: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter holds after running `statements`."""
    report = f"import json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = run_python(f"{statements}\n{report}")
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statements",
    [
        "import keras_resnet",
        "import keras_resnet; assert 'resnet50' in keras_resnet.list_models()",
        "import keras_resnet; keras_resnet.get_architecture('resnet50').to_dict()",
        "import keras_resnet; assert 'ResNet50' in dir(keras_resnet)",
        "import keras_resnet; assert keras_resnet.get_counts('resnet50').parameters == 25_557_032",
        "from keras_resnet.weights import public_weights; assert public_weights('resnet50')",
    ],
)
def test_the_package_and_its_table_import_no_library(statements):
    assert loaded_after(statements) == set()


@pytest.mark.parametrize(
    "statements",
    [
        "import keras_resnet.preprocessing",
        "import keras_resnet; keras_resnet.Preprocessing().byte_quantization",
        "import keras_resnet; keras_resnet.read_image",
        "import keras_resnet, numpy; keras_resnet.Preprocessing()(numpy.zeros((2, 2, 3)))",
    ],
)
def test_preprocessing_imports_neither_tensorflow_nor_keras(statements):
    assert loaded_after(statements) == {"numpy"}


def test_reading_and_fitting_an_image_imports_neither_tensorflow_nor_keras():
    statements = (
        "import keras_resnet, numpy\n"
        "image = numpy.zeros((5, 4, 3), 'uint8')\n"
        "assert keras_resnet.read_image(image).shape == (5, 4, 3)\n"
        "assert keras_resnet.Preprocessing().fit(image, (3, 3)).shape == (3, 3, 3)"
    )
    assert loaded_after(statements) == {"numpy", "PIL"}


@pytest.mark.parametrize(
    ("statements", "modules"),
    [
        ("from keras_resnet.weights import DownloadError", set()),
        ("from keras_resnet import WeightsError", {"numpy"}),
        ("from keras_resnet import decode_predictions", {"numpy"}),
    ],
)
def test_what_surrounds_weights_imports_neither_tensorflow_nor_keras(statements, modules):
    assert loaded_after(statements) == modules


def test_importing_the_package_takes_at_most_50_ms():
    """Of the processor: what other programs take of it meanwhile is not the package's."""
    timed = (
        "import time; t = time.process_time(); import keras_resnet; print(time.process_time() - t)"
    )
    assert min(float(run_python("-c", timed).stdout) for _ in range(5)) <= 0.05


def test_every_public_name_resolves():
    for name in set(keras_resnet.__all__) - {"export", "data", "training"}:
        assert getattr(keras_resnet, name) is not None, name
        assert name in dir(keras_resnet)


def test_every_builder_is_a_function_of_its_own_name_with_help():
    assert len(BUILDERS) == len(keras_resnet.list_models())
    for name in BUILDERS:
        builder = getattr(keras_resnet, name)
        assert builder.__name__ == name
        assert "input_shape" in builder.__doc__


def test_an_unknown_attribute_raises_attribute_error():
    with pytest.raises(AttributeError, match="ResNet51"):
        keras_resnet.ResNet51  # noqa: B018


def imports(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Top-level packages imported at import time, and those imported inside functions."""
    eager, lazy = set(), set()

    def visit(node: ast.AST, inside_function: bool) -> None:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level if node.level else node.module]
        (lazy if inside_function else eager).update(name.split(".")[0] for name in names)
        inside_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside_function)

    visit(tree, inside_function=False)
    return eager, lazy


@pytest.mark.parametrize("module", ["architecture", "blocks", "layers", "models"])
def test_the_builders_import_only_keras_and_numpy(module):
    source = Path(keras_resnet.__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    eager, lazy = imports(ast.parse(source))
    allowed = set(sys.stdlib_module_names) | {"keras", "numpy", "keras_resnet"}
    assert eager <= allowed
    # A layer may call a kernel of TensorFlow's where TensorFlow is the backend; weights are written
    # with h5py and safetensors.
    extra = {"layers": {"tensorflow"}, "models": {"h5py", "safetensors"}}.get(module, set())
    assert lazy <= allowed | extra


def test_the_table_of_architectures_imports_neither_keras_nor_numpy():
    source = Path(keras_resnet.__file__).with_name("architecture.py").read_text(encoding="utf-8")
    eager, lazy = imports(ast.parse(source))
    assert eager | lazy <= set(sys.stdlib_module_names)
