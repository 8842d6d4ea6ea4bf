"""From a Keras network to the bytes of a `.tflite` file."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator
from typing import Any, Literal

import keras
import tensorflow as tf
from tensorflow.lite.python.convert_phase import ConverterError

from keras_resnet.export import flatbuffer, quantizer
from keras_resnet.export.calibration import Calibration
from keras_resnet.export.schemes import Scheme
from keras_resnet.export.source import SourceNetwork
from keras_resnet.quiet import held_back_stderr

Batch = int | Literal["dynamic"]
# What `io` asks for in a scheme with 8-bit activations: the dtypes of the input and of the outputs.
_IO = {
    "auto": ("uint8", "float32"),
    "uint8": ("uint8", "uint8"),
    "int8": ("int8", "int8"),
    "float32": ("float32", "float32"),
}


def io_types(scheme: Scheme, io: str) -> tuple[str, str]:
    """The dtypes of a file's input and outputs.

    Raises:
        ValueError: if the scheme does not have them.
    """
    if io not in _IO:
        raise ValueError(f"Argument `io` must be one of {list(_IO)}. Received: {io!r}")
    if scheme.name == "int8":
        return _IO[io]
    if io not in ("auto", "float32"):
        raise ValueError(
            f"Files in {scheme.name} take and give float32: argument `io` must be 'auto' or "
            f"'float32'. Received: {io!r}"
        )
    return _IO["float32"]


def convert(
    network: SourceNetwork,
    scheme: Scheme,
    calibration: Calibration | None,
    *,
    batch: Batch = 1,
    io: str = "auto",
    keep_float: Collection[str] = (),
) -> bytes:
    """A `.tflite` file from raw pixels to what the network gives (`SourceNetwork.outputs`).

    Args:
        network: what to convert.
        scheme: its number format.
        calibration: images, for the schemes that need them.
        batch: images at a time, or `"dynamic"`.
        io: see `to_tflite`.
        keep_float: names of outputs of operators, in the float32 file, that stay in float32.

    Raises:
        ValueError: if the arguments do not go together, or the network has operations that TFLite
            has no operator for.
    """
    options = options_of(scheme, io, keep_float)
    if not scheme.is_calibrated:
        return convert_float(network, scheme.name, batch=batch)
    if calibration is None:
        raise ValueError(f"Scheme {scheme.name} needs calibration images. Received: None")
    content = convert_float(network, batch=batch)
    return quantizer.rewrite(content, quantizer.observe(content, calibration.images), options)


def convert_float(network: SourceNetwork, scheme: str = "float32", *, batch: Batch = 1) -> bytes:
    """The file in float32, or with the weights in float16 or 8 bits alone.

    The network is traced with its weights as constants. TFLiteConverter's other entrances take
    variables and spend most of their time on copying the graph three times to freeze them.
    """
    _check_batch(batch)
    values = [(variable, variable.numpy()) for variable in _variables(network)]
    graph = tf.Graph()
    with graph.as_default():
        size = None if batch == "dynamic" else batch
        pixels = tf.compat.v1.placeholder(tf.float32, (size, *network.shape), name="pixels")
        constants = [(variable, tf.constant(value)) for variable, value in values]
        # The end of a scope that initializes variables gives values, in this graph, to all those of
        # the process that wait for theirs.
        with keras.StatelessScope(state_mapping=constants, initialize_variables=False):
            tensors = network.tensors(pixels)
    ends = [tensors[name] for name in network.outputs]
    converter = tf.compat.v1.lite.TFLiteConverter(graph.as_graph_def(), [pixels], ends)
    if scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    with quiet_converter():
        model = flatbuffer.unpack(_converted(converter))
    flatbuffer.name_ends(model, "pixels", network.outputs)
    return flatbuffer.pack(model)


def options_of(scheme: Scheme, io: str, keep_float: Collection[str] = ()) -> quantizer.Options:
    """How the quantizer is told what `convert` was asked for."""
    source, target = io_types(scheme, io)
    return quantizer.Options(
        scheme=scheme.name,
        source=source,
        target=target,
        keep_float=keep_float,
        # One scale for all classes is what TFLite Micro's fully connected kernel takes.
        per_channel_dense=target == "float32",
    )


def _variables(network: SourceNetwork) -> list[Any]:
    models = (
        [network.logits] if network.logits is network.model else [network.logits, network.model]
    )
    return list({id(v): v for model in models for v in model.variables}.values())


def _check_batch(batch: Any) -> None:
    is_count = isinstance(batch, int) and not isinstance(batch, bool) and batch > 0
    if batch != "dynamic" and not is_count:
        raise ValueError(
            f"Argument `batch` must be a positive integer or 'dynamic'. Received: {batch!r}"
        )


def _converted(converter: tf.compat.v1.lite.TFLiteConverter) -> bytes:
    """Runs a converter, which knows nothing but TFLite's own operators: there is no Flex op."""
    try:
        return bytes(converter.convert())
    except ConverterError as error:
        named = [line.strip() for line in str(error).splitlines() if "tf." in line]
        raise ValueError(
            "The network has operations that TFLite has no operator for, and a file that needs "
            f"TensorFlow's (Flex) runs on few devices. Received: {'; '.join(named[:5]) or error}"
        ) from error


@contextlib.contextmanager
def quiet_converter() -> Iterator[None]:
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
