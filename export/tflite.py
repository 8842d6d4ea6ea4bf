"""From a Keras classifier to a verified bundle with a TFLite file."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import flatbuffers
import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from keras_resnet.data import ImageData, Split, load
from keras_resnet.export import bundle as bundle_module
from keras_resnet.export import calibration as calibration_module
from keras_resnet.export.bundle import Bundle
from keras_resnet.export.calibration import Calibration
from keras_resnet.export.inspection import Graph, read_graph
from keras_resnet.export.runtime import Runner
from keras_resnet.export.schemes import Scheme, get_scheme
from keras_resnet.export.source import SourceNetwork, fixed_input_shape, golden_images
from keras_resnet.export.verification import (
    ExportRejected,
    Verification,
    compare,
    compare_accuracy,
    judge,
)
from keras_resnet.files import atomic_directory
from keras_resnet.models import check_classes
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.quiet import held_back_stderr

_EVALUATION_BATCH = 64
_LIBRARIES = ("keras", "tensorflow", "ai-edge-litert")


def to_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    scheme: str = "int8",
    *,
    calibration: ImageData | Split | np.ndarray | str | None = None,
    evaluation: ImageData | Split | str | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    max_drop: float = 0.01,
    calibration_count: int = calibration_module.DEFAULT_COUNT,
    force: bool = False,
) -> Bundle:
    """Exports a classifier as a bundle, after proving that it is still the same network.

    The file takes raw RGB pixels `(1, height, width, channels)`, uint8 for `int8` and float32
    0..255 for the other schemes, and gives float32 probabilities `(1, classes)`.

    Args:
        model: a functional classifier with a fixed input size that ends in logits or a softmax.
        path: the directory to make.
        scheme: `"float32"`, `"float16"`, `"dynamic_int8"` or `"int8"`.
        calibration: images for `int8`: a data source or its name (its training split), a split, or
            raw uint8 images `(n, h, w, c)`.
        evaluation: labelled images to compare the accuracy on: a source or its name (its test
            split), or a split. None compares the golden images only.
        labels: class names; None takes the model's own, or else those of `evaluation`.
        preprocessing: how the model's input is made; None takes the model's own.
        max_drop: the largest loss of accuracy on the evaluation images, as a fraction of them.
        calibration_count: how many images to calibrate with.
        force: whether a bundle that is at `path` already may be replaced.

    Returns:
        The bundle.

    Raises:
        ExportRejected: if the file differs too much from the model; nothing is left at `path`.
        FileExistsError: if there is something at `path` already.
        ValueError: if the model cannot be exported, or an argument is out of range.
    """
    chosen = get_scheme(scheme)
    if not 0 <= max_drop <= 1:
        raise ValueError(
            f"Argument `max_drop` must be a fraction in [0, 1]. Received: max_drop={max_drop!r}"
        )
    shape = fixed_input_shape(model)
    preprocessing = preprocessing or Preprocessing.from_model(model)
    evaluation = load(evaluation) if isinstance(evaluation, str) else evaluation
    if isinstance(evaluation, ImageData):
        check_classes(model, evaluation.name, evaluation.class_names)
    if labels is None:
        labels = getattr(model, "class_names", None) or getattr(evaluation, "class_names", None)
    classes = model.output_shape[-1]
    names = tuple(labels) if labels else tuple(f"class {i}" for i in range(classes))
    bundle_module.check_labels(names, classes)

    with atomic_directory(path, marker=bundle_module.MANIFEST, force=force) as directory:
        images = None
        if chosen.activations == "int8":
            images = calibration_module.choose(calibration, shape, preprocessing, calibration_count)
        network = SourceNetwork(model, preprocessing)
        split = evaluation.test if isinstance(evaluation, ImageData) else evaluation
        golden = golden_images(split, images, shape, preprocessing)
        expected = network.predict(golden)
        if not np.isfinite(expected).all():
            raise ValueError(
                "The model's own probabilities are not finite numbers, so there is nothing to "
                "compare an export with; a very deep network that was never trained overflows. "
                f"Received: the model {model.name!r}"
            )
        content = convert(network, chosen, images)
        graph = read_graph(content)
        report = _verify(content, graph, chosen, network, golden, expected, split, max_drop)
        if not report.passed:
            raise ExportRejected(report)
        manifest = _manifest(model, chosen, preprocessing, images, report, graph)
        bundle_module.write_files(directory, content, names, (golden, expected), manifest)
    return Bundle.open(path)


def convert(network: SourceNetwork, scheme: Scheme, calibration: Calibration | None) -> bytes:
    """A `.tflite` file from raw pixels to float32 probabilities, batch 1.

    In `int8`, the converter sees the network up to its logits, and a float softmax is put behind:
    8-bit probabilities cannot rank many classes. Where the preprocessing maps bytes to bytes
    (`Preprocessing.byte_quantization`), it is left to the quantization of the input, which then
    costs nothing and is exact; otherwise it is part of the graph.
    """
    is_int8 = scheme.activations == "int8"
    by_byte = network.preprocessing.byte_quantization
    function: Any = network.probabilities
    if is_int8:
        function = network.pixel_logits if by_byte is None else network.preprocessed_logits
    signature = tf.TensorSpec((1, *network.shape), tf.float32, name="pixels")
    concrete = tf.function(function).get_concrete_function(signature)
    with _quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        if scheme.name != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if scheme.name == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if is_int8:
            if calibration is None:
                raise ValueError("Scheme int8 needs calibration images. Received: None")
            pixels = calibration.spanning()
            values = pixels.astype(np.float32) if by_byte is None else network.preprocessing(pixels)
            converter.representative_dataset = lambda: ([value[None]] for value in values)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.uint8
            converter.inference_output_type = tf.float32
        content = _finish(converter.convert(), append_softmax=is_int8)
    if is_int8:
        _check_input_quantization(read_graph(content), by_byte or (1.0, 0))
    return content


def _finish(content: bytes, *, append_softmax: bool) -> bytes:
    """Gives a converted file its softmax, if it lacks one, and names for its ends."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    if append_softmax:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SOFTMAX
        code.version = 1
        model.operatorCodes.append(code)
        logits = graph.tensors[graph.outputs[0]]
        probabilities = schema.TensorT()
        probabilities.shape = logits.shape
        probabilities.type = schema.TensorType.FLOAT32
        probabilities.buffer = 0  # the empty buffer: nothing is stored
        graph.tensors.append(probabilities)
        softmax = schema.OperatorT()
        softmax.opcodeIndex = len(model.operatorCodes) - 1
        softmax.inputs = [int(graph.outputs[0])]
        softmax.outputs = [len(graph.tensors) - 1]
        softmax.builtinOptionsType = schema.BuiltinOptions.SoftmaxOptions
        softmax.builtinOptions = schema.SoftmaxOptionsT()
        softmax.builtinOptions.beta = 1.0
        graph.operators.append(softmax)
        logits.name = b"logits"
        graph.outputs = softmax.outputs
    signature = schema.SignatureDefT()
    signature.signatureKey = b"serving_default"
    signature.subgraphIndex = 0
    signature.inputs = [_name_tensor(graph, graph.inputs[0], b"pixels")]
    signature.outputs = [_name_tensor(graph, graph.outputs[0], b"probabilities")]
    model.signatureDefs = [signature]
    builder = _AlignedBuilder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _name_tensor(graph: schema.SubGraphT, index: int, name: bytes) -> schema.TensorMapT:
    graph.tensors[index].name = name
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, int(index)
    return entry


class _AlignedBuilder(flatbuffers.Builder):
    """Puts constants at multiples of 16 bytes, as the TFLite schema asks and Python forgets."""

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        if x.dtype != np.uint8:
            return super().CreateNumpyVector(x)
        self.StartVector(1, x.size, 16)
        self.head -= x.size
        self.Bytes[self.head : self.head + x.size] = x.tobytes()
        return self.EndVector()


def _check_input_quantization(graph: Graph, expected: tuple[float, int]) -> None:
    tensor = graph.tensors[graph.inputs[0]]
    scale, zero_point = tensor.scale[0], tensor.zero_point[0]
    if abs(scale / expected[0] - 1) > 1e-6 or zero_point != expected[1]:
        raise RuntimeError(
            "The converter gave the input another quantization than raw bytes need: scale "
            f"{scale}, zero point {zero_point}, instead of {expected}"
        )


def _verify(
    content: bytes,
    graph: Graph,
    scheme: Scheme,
    network: SourceNetwork,
    golden: np.ndarray,
    expected: np.ndarray,
    split: Split | None,
    max_drop: float,
) -> Verification:
    runner = Runner(content, threads=os.cpu_count())
    accuracy = None
    if split is not None:
        batches = split.batches(_EVALUATION_BATCH, network.shape, network.preprocessing)
        with split.own_errors():
            accuracy = compare_accuracy(
                network.predict, runner, batches.as_numpy_iterator(), max_drop
            )
    return judge(scheme.name, graph.scheme, compare(expected, runner(golden)), accuracy)


def _manifest(
    model: keras.Model,
    scheme: Scheme,
    preprocessing: Preprocessing,
    calibration: Calibration | None,
    report: Verification,
    graph: Graph,
) -> dict[str, Any]:
    from keras_resnet import __version__

    architecture = getattr(model, "architecture", None)
    source, target = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    return {
        "model": model.name,
        "architecture": architecture and architecture.to_dict(),
        "scheme": scheme.name,
        "input": {
            "name": source.name,
            "shape": list(source.shape),
            "dtype": source.dtype,
            "content": "raw RGB pixels 0..255" if source.shape[-1] == 3 else "raw pixels 0..255",
        },
        "output": {
            "name": target.name,
            "shape": list(target.shape),
            "dtype": target.dtype,
            "content": "probabilities",
        },
        "preprocessing": preprocessing.to_dict(),
        "calibration": None
        if calibration is None
        else {
            "source": calibration.source,
            "images": len(calibration.images),
            "sha256": calibration.digest,
        },
        "verification": report.to_dict(),
        "versions": {"keras_resnet": __version__}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what the converter says of its normal work, in C++, absl and Python warnings."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        with held_back_stderr(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="tensorflow")
            yield
    finally:
        absl.setLevel(level)
