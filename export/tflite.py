"""From a Keras network to a verified bundle with a TFLite file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import ImageData, Split, load
from keras_resnet.export import bundle as bundle_module
from keras_resnet.export import calibration as calibration_module
from keras_resnet.export import quantizer
from keras_resnet.export.bundle import Bundle
from keras_resnet.export.calibration import Calibration, CalibrationWarning
from keras_resnet.export.conversion import Batch, convert, convert_float, io_types, options_of
from keras_resnet.export.inspection import read_graph
from keras_resnet.export.layers import LayerError, compare_layers, layer_names
from keras_resnet.export.metadata import add_metadata
from keras_resnet.export.repair import RepairWarning
from keras_resnet.export.repair import repair as repair_file
from keras_resnet.export.report import render
from keras_resnet.export.runtime import Runner
from keras_resnet.export.schemes import Scheme, get_scheme
from keras_resnet.export.source import OutputKind, SourceNetwork, golden_images
from keras_resnet.export.stem import fold_stem
from keras_resnet.export.verification import (
    AccuracyComparison,
    ExportRejected,
    Outcomes,
    Verification,
    compare,
    judge,
    outcomes,
    real_scheme,
    reload,
)
from keras_resnet.files import atomic_directory, atomic_file
from keras_resnet.models import check_classes
from keras_resnet.preprocessing import Preprocessing

_EVALUATION_BATCH = 64
_LAYER_IMAGES = 8  # as many tell the layers apart, and every tensor of every one is read
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
    batch: Batch = 1,
    io: str = "auto",
    outputs: OutputKind = "probabilities",
    layers: bool = False,
    repair: bool = False,
    force: bool = False,
) -> Bundle:
    """Exports a network as a bundle, after proving that it is still the same network.

    The file takes raw RGB pixels `(batch, height, width, channels)`, uint8 for `int8` and float32
    0..255 for the other schemes, and gives float32 probabilities `(batch, classes)`.

    Args:
        model: a functional network with a fixed input size: a classifier that ends in logits or a
            softmax, or with `outputs="features"` any other.
        path: the directory to make. A rejected export leaves its report beside it, at
            `path + ".rejected.html"`.
        scheme: `"float32"`, `"float16"`, `"dynamic_int8"`, `"int8"` or `"int16x8"`.
        calibration: images for `int8` and `int16x8`: a data source or its name (its training
            split), a split, or raw uint8 images `(n, h, w, c)`.
        evaluation: labelled images to compare the accuracy on: a source or its name (its test
            split), or a split. None compares the golden images only.
        labels: class names; None takes the model's own, or else those of `evaluation`.
        preprocessing: how the model's input is made; None takes the model's own.
        max_drop: the largest loss of accuracy on the evaluation images, as a fraction of them.
        calibration_count: how many images to calibrate with.
        batch: how many images the file takes at a time, or `"dynamic"` for any number.
        io: types of an `int8` file's input and output. `"auto"`: uint8 pixels in and float32 out,
            which every client takes; `"uint8"`: both; `"int8"`: both, the pixels minus 128, for
            microcontrollers; `"float32"`: both. 8-bit probabilities come in steps of 1/256.
        outputs: `"probabilities"`, `"logits"`, or `"features"`: whatever the model gives, e.g. the
            maps of `keras_resnet.feature_model`, by its names.
        layers: whether to measure the error that every layer adds, for the report.
        repair: whether to leave layers in float32, as few as possible, if the export would be
            rejected without.
        force: whether a bundle that is at `path` already may be replaced.

    Returns:
        The bundle.

    Warns:
        CalibrationWarning: of calibration images that look wrong; the reasons are among the
            verification's warnings as well.
        RepairWarning: of the layers that a repair left in float32, and what they cost.

    Raises:
        ExportRejected: if the file differs too much from the model; nothing is left at `path`.
        FileExistsError: if there is something at `path` already.
        ValueError: if the model cannot be exported, or an argument is out of range.
    """
    chosen = get_scheme(scheme)
    io_types(chosen, io)
    if not 0 <= max_drop <= 1:
        raise ValueError(
            f"Argument `max_drop` must be a fraction in [0, 1]. Received: max_drop={max_drop!r}"
        )
    if outputs == "features" and evaluation is not None:
        raise ValueError(
            "Features have no accuracy: argument `evaluation` is for classifiers. "
            f"Received: {evaluation!r}"
        )
    preprocessing = preprocessing or Preprocessing.from_model(model)
    network = SourceNetwork(model, preprocessing, outputs)
    evaluation = load(evaluation) if isinstance(evaluation, str) else evaluation
    if isinstance(evaluation, ImageData):
        check_classes(model, evaluation.name, evaluation.class_names)
    names = _labels(model, labels, evaluation, outputs)

    with atomic_directory(path, marker=bundle_module.MANIFEST, force=force) as directory:
        images = None
        if chosen.is_calibrated:
            images = calibration_module.choose(
                calibration, network.shape, preprocessing, calibration_count
            )
        split = evaluation.test if isinstance(evaluation, ImageData) else evaluation
        job = _Export(
            network,
            SourceNetwork(reload(model), preprocessing, outputs),
            chosen,
            images,
            batch=batch,
            io=io,
            labels=names,
            split=split,
            max_drop=max_drop,
        )
        content, report = job.run(with_layers=layers, with_repair=repair)
        for suspicion in job.suspicions:
            warnings.warn(suspicion, CalibrationWarning, stacklevel=2)
        manifest = _manifest(job, model, report)
        page = render(report, content, manifest, names, job.outcomes)
        if not report.passed:
            with atomic_file(_rejected_page(path)) as temporary:
                Path(temporary).write_text(page, encoding="utf-8")
            raise ExportRejected(report)
        golden = (job.golden, job.expected)
        bundle_module.write_files(directory, content, names, golden, manifest, report_html=page)
    if report.repair is not None:  # with the time that it costs, which is no part of the bundle
        warnings.warn(str(report.repair), RepairWarning, stacklevel=2)
    _rejected_page(path).unlink(missing_ok=True)
    return Bundle.open(path)


def _rejected_page(path: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(path).rstrip(os.sep)}.rejected.html")


def _labels(
    model: keras.Model, labels: Sequence[str] | None, evaluation: Any, outputs: OutputKind
) -> tuple[str, ...]:
    if outputs == "features":
        return ()
    if labels is None:
        labels = getattr(model, "class_names", None) or getattr(evaluation, "class_names", None)
    classes = model.output_shape[-1]
    names = tuple(labels) if labels else tuple(f"class {i}" for i in range(classes))
    bundle_module.check_labels(names, classes)
    return names


class _Export:
    """A conversion with its evidence.

    Attributes:
        golden: raw images.
        expected: what the network, reloaded from disk, makes of them.
        outcomes: what both networks made of every evaluation image; None without any.
        suspicions: what is suspicious of the calibration images.
    """

    def __init__(
        self,
        network: SourceNetwork,
        reference: SourceNetwork,
        scheme: Scheme,
        images: Calibration | None,
        *,
        batch: Batch,
        io: str,
        labels: tuple[str, ...],
        split: Split | None,
        max_drop: float,
    ):
        self.network, self.reference, self.scheme, self.images = network, reference, scheme, images
        self.batch, self.io, self.labels = batch, io, labels
        self.split, self.max_drop = split, max_drop
        self.outcomes: Outcomes | None = None
        self.suspicions: tuple[str, ...] = () if images is None else images.warnings
        self.golden = golden_images(split, images, network.shape, network.preprocessing)
        self.expected = reference.predict(self.golden)
        _check_finite(network, self.expected)

    def run(self, *, with_layers: bool, with_repair: bool) -> tuple[bytes, Verification]:
        """The file and its verdict."""
        content = self._finished(
            convert(self.network, self.scheme, self.images, batch=self.batch, io=self.io)
        )
        report = self._verdict(content, ())
        needs_repair = with_repair and not report.passed and self.images is not None
        if not (needs_repair or (with_layers and self.scheme.name != "float32")):
            return content, report
        float_content = convert_float(self.network, batch=self.batch)
        ranking = self._layers(float_content)
        if needs_repair:
            content, report = self._repaired(float_content, content, report, ranking)
            ranking = self._layers(float_content)
        return content, dataclasses.replace(report, layers=ranking)

    def _finished(self, content: bytes) -> bytes:
        """As it is handed over: with a faster stem, and the metadata that clients read."""
        self._converted = content
        if self.scheme.name == "int8":
            content = fold_stem(content)
        gives = " and ".join(self.network.outputs)
        description = f"Takes raw pixels 0..255 and gives {gives}; in {self.scheme.name}."
        return add_metadata(
            content, self.labels, name=self.network.model.name, description=description
        )

    def _verdict(self, content: bytes, kept_float: Sequence[str]) -> Verification:
        runner = Runner(content, threads=os.cpu_count())
        accuracy: AccuracyComparison | None = None
        overlap: tuple[str, ...] = ()
        if self.split is not None:
            shape, preprocessing = self.network.shape, self.network.preprocessing
            batches = self.split.batches(_EVALUATION_BATCH, shape, preprocessing)
            seen: set[bytes] = set()
            with self.split.own_errors():
                self.outcomes = outcomes(
                    self.reference.predict, runner, _noted(batches.as_numpy_iterator(), seen)
                )
            accuracy = self.outcomes.accuracy(self.max_drop)
            if self.images is not None:
                overlap = self.images.check_overlap(seen)
        if self.images is not None:
            self.suspicions = (*self.images.warnings, *overlap)
        return judge(
            self.scheme.name,
            real_scheme(read_graph(content), kept_float),
            compare(self.expected, self._outputs(runner)),
            accuracy,
            warnings=self.suspicions,
        )

    def _outputs(self, runner: Runner) -> Any:
        """What a file makes of the golden images, in the form of `SourceNetwork.predict`."""
        outputs = runner(self.golden)
        if self.network.kind == "features" and not isinstance(outputs, dict):
            return {self.network.outputs[0]: outputs}
        return tf.nn.softmax(outputs).numpy() if self.network.kind == "logits" else outputs

    def _layers(self, float_content: bytes) -> tuple[LayerError, ...]:
        """Of what was converted last, whose stem still is the network's."""
        names = layer_names(self.network.model)
        few = max(_LAYER_IMAGES, 0 if self.batch == "dynamic" else self.batch)
        return compare_layers(float_content, self._converted, self.golden[:few], names)

    def _repaired(
        self,
        float_content: bytes,
        content: bytes,
        report: Verification,
        ranking: Sequence[LayerError],
    ) -> tuple[bytes, Verification]:
        if self.images is None:
            raise ValueError("Only what is calibrated can be repaired. Received: no images")
        observed = quantizer.observe(float_content, self.images.images)

        def requantize(tensors: tuple[str, ...]) -> bytes:
            options = options_of(self.scheme, self.io, tensors)
            return self._finished(quantizer.rewrite(float_content, observed, options))

        return repair_file(content, report, ranking, requantize, self._verdict)


def _noted(
    batches: Iterator[tuple[np.ndarray, np.ndarray]], seen: set[bytes]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same batches, with the digests of their images noted."""
    for images, labels in batches:
        seen |= calibration_module.pixel_digests(images)
        yield images, labels


def _check_finite(network: SourceNetwork, expected: Any) -> None:
    arrays = expected.values() if isinstance(expected, dict) else [expected]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(
            "The model's own outputs are not finite numbers, so there is nothing to compare an "
            "export with; a very deep network that was never trained overflows. "
            f"Received: the model {network.model.name!r}"
        )


def _manifest(job: _Export, model: keras.Model, report: Verification) -> dict[str, Any]:
    from keras_resnet import __version__

    architecture = getattr(model, "architecture", None)
    images = job.images
    return {
        "model": model.name,
        "architecture": architecture and architecture.to_dict(),
        "weights": {"sha256": bundle_module.array_digest(model.get_weights())},
        "scheme": job.scheme.name,
        "preprocessing": job.network.preprocessing.to_dict(),
        "calibration": None
        if images is None
        else {
            "source": images.source,
            "images": len(images.images),
            "method": quantizer.METHOD,
            "sha256": images.digest,
        },
        "converter": {"batch": job.batch, "io": job.io, "outputs": job.network.kind},
        "verification": report.to_dict(),
        "versions": {"keras_resnet": __version__}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
