"""From a Keras classifier to a verified TensorFlow SavedModel."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from keras_resnet.export import decoding
from keras_resnet.export.schemes import get_scheme
from keras_resnet.export.source import OutputKind, SourceNetwork, golden_images
from keras_resnet.export.verification import ExportRejected, compare, judge, reload
from keras_resnet.files import atomic_directory
from keras_resnet.preprocessing import Preprocessing


def to_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    outputs: OutputKind = "probabilities",
    force: bool = False,
) -> Path:
    """Exports a network as a SavedModel, after proving that it is still the same network.

    Serving it needs TensorFlow, but neither Keras nor this package. It has two signatures:

    - `serving_default` takes `pixels`, float32 `(batch, height, width, channels)`, raw RGB 0..255
      in the network's size.
    - `serve_bytes` takes `images`, strings `(batch,)`, the contents of JPEG or PNG files of any
      size, and fits them to the network as `Preprocessing.fit` does, pixel for pixel.

    Both give `probabilities` or `logits`, float32 `(batch, classes)`, or the features by name.

    Args:
        model: a functional classifier that ends in logits or a softmax, with a fixed input size; or
            a network that gives features.
        path: the directory to make.
        preprocessing: how the model's input is made; None takes the model's own.
        outputs: `"probabilities"`, `"logits"`, or `"features"` for a network without a classifier.
        force: whether a SavedModel that is at `path` already may be replaced.

    Returns:
        The path.

    Raises:
        ExportRejected: if the reloaded SavedModel differs from the model.
        FileExistsError: if there is something at `path` already.
        ValueError: if the model cannot be exported.
    """
    network = SourceNetwork(model, preprocessing or Preprocessing.from_model(model), outputs)
    golden = golden_images(None, None, network.shape, network.preprocessing)
    with atomic_directory(path, marker="saved_model.pb", force=force) as directory:
        module = tf.Module()
        module.variables_of_model = [variable.value for variable in network.logits.variables]
        tf.saved_model.save(module, str(directory), signatures=_signatures(network))
        # Not the network that was converted, which a mistake of the conversion could share.
        reference = SourceNetwork(reload(model), network.preprocessing, outputs)
        _check(directory, reference, golden)
    return Path(path)


def _signatures(network: SourceNetwork) -> dict[str, tf.types.experimental.GenericFunction]:
    def serve(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return network.tensors(pixels)

    def read(contents: tf.Tensor) -> tf.Tensor:
        return decoding.fit(decoding.decode(contents), network.shape, network.preprocessing)

    def serve_bytes(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # A PNG of twelve megapixels takes half a gigabyte: two at a time.
        pixels = tf.map_fn(read, images, fn_output_signature=tf.uint8, parallel_iterations=2)
        return serve(tf.cast(tf.ensure_shape(pixels, (None, *network.shape)), tf.float32))

    shape = (None, *network.shape)
    return {
        "serving_default": tf.function(
            serve, input_signature=[tf.TensorSpec(shape, tf.float32, name="pixels")]
        ),
        "serve_bytes": tf.function(
            serve_bytes, input_signature=[tf.TensorSpec((None,), tf.string, name="images")]
        ),
    }


def _check(directory: Path, network: SourceNetwork, golden: np.ndarray) -> None:
    """Raises `ExportRejected` unless both signatures give what the model gives."""
    signatures = tf.saved_model.load(str(directory)).signatures
    files = tf.constant([_png(image) for image in golden])
    # A file is cropped if the preprocessing says so, also where it has the network's size.
    height, width, channels = network.shape
    fit = network.preprocessing.fit
    fitted = np.stack([fit(image, (height, width), channels) for image in golden])
    exact = get_scheme("float32").name
    for served, pixels in (
        (signatures["serving_default"](pixels=tf.constant(golden.astype(np.float32))), golden),
        (signatures["serve_bytes"](images=files), fitted),
    ):
        actual: Any = {name: tensor.numpy() for name, tensor in served.items()}
        if network.kind == "logits":
            actual = tf.nn.softmax(actual["logits"]).numpy()
        elif network.kind == "probabilities":
            actual = actual["probabilities"]
        report = judge(exact, exact, compare(network.predict(pixels), actual))
        if not report.passed:
            raise ExportRejected(report)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()
