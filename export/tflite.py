"""From a Keras network to a verified bundle with a TFLite file."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_resnet.data import ImageData, Split, load
from keras_resnet.export import bundle as bundle_module
from keras_resnet.export import calibration as calibration_module
from keras_resnet.export import quantizer
from keras_resnet.export.bundle import Bundle
from keras_resnet.export.c_array import check_c_array
from keras_resnet.export.calibration import Calibration, CalibrationWarning
from keras_resnet.export.conversion import Batch, convert, convert_float, io_types, options_of
from keras_resnet.export.evidence import Evidence
from keras_resnet.export.layers import LayerError, compare_layers, layer_names
from keras_resnet.export.presets import Preset, TargetWarning, get_preset
from keras_resnet.export.repair import RepairWarning
from keras_resnet.export.repair import repair as repair_file
from keras_resnet.export.schemes import get_scheme
from keras_resnet.export.source import OutputKind, SourceNetwork
from keras_resnet.export.verification import Verification
from keras_resnet.files import refuse_existing_directory
from keras_resnet.models import check_classes
from keras_resnet.preprocessing import Preprocessing

_LAYER_IMAGES = 8  # as many tell the layers apart, and every tensor of every one is read


def to_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    scheme: str = "int8",
    *,
    calibration: ImageData | Split | np.ndarray | str | os.PathLike[str] | None = None,
    evaluation: ImageData | Split | str | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    max_drop: float = 0.01,
    calibration_count: int = calibration_module.DEFAULT_COUNT,
    batch: Batch = 1,
    io: str = "auto",
    outputs: OutputKind = "probabilities",
    target: str | None = None,
    c_array: bool = False,
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
            split), a split, raw uint8 images `(n, h, w, c)`, or an `.npz` file with such `images`.
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
        target: the kind of device that it is for, `"pi"`, `"android"`, `"web"` or `"tflm"`: the
            file is held against what runs there before anything is written. For `"tflm"`, `"auto"`
            is `"int8"` as `io`, and `c_array` is on.
        c_array: whether to add the file as C++ source, `model.h` and `model.cc`, see
            `keras_resnet.export.write_c_array`.
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
        TargetWarning: of what the target runs slowly.

    Raises:
        ExportRejected: if the file differs too much from the model; nothing is left at `path`.
        TargetError: (a ValueError) if the target does not take the file; likewise.
        FileExistsError: if there is something at `path` already.
        ValueError: if the model cannot be exported, or an argument is out of range.
    """
    chosen = get_scheme(scheme)
    preset = None if target is None else get_preset(target)
    io = io if preset is None else preset.io(scheme, io)
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

    split = evaluation.test if isinstance(evaluation, ImageData) else evaluation
    refuse_existing_directory(path, marker=bundle_module.MANIFEST, force=force)

    images = None
    if chosen.is_calibrated:
        images = calibration_module.choose(
            calibration, network.shape, preprocessing, calibration_count
        )
    evidence = Evidence(
        network, chosen, labels=names, split=split, max_drop=max_drop, calibration=images
    )
    c_array = c_array or (preset is not None and preset.c_array)
    accept = functools.partial(_accept, preset=preset, c_array=c_array)
    job = _Export(evidence, images, batch, io, accept)
    content, report = job.run(with_layers=layers, with_repair=repair)
    for suspicion in evidence.suspicions:
        warnings.warn(suspicion, CalibrationWarning, stacklevel=2)
    for slow in accept(content):
        warnings.warn(slow, TargetWarning, stacklevel=2)
    converter = {"batch": batch, "io": io} | ({} if preset is None else {"target": preset.name})
    bundle = evidence.publish(
        path, content, report, converter=converter, c_array=c_array, force=force
    )
    if report.repair is not None:  # with the time that it costs, which is no part of the bundle
        warnings.warn(str(report.repair), RepairWarning, stacklevel=2)
    return bundle


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


def _accept(content: bytes, *, preset: Preset | None, c_array: bool) -> list[str]:
    """What the target runs slowly; raises `ValueError` if it does not take the file."""
    slow = [] if preset is None else preset.slow(content)
    if c_array:
        check_c_array(content)
    return [str(finding).strip() for finding in slow]


class _Export:
    """A conversion as it was asked for and, where that fails, with layers left in float."""

    def __init__(
        self,
        evidence: Evidence,
        images: Calibration | None,
        batch: Batch,
        io: str,
        accept: Callable[[bytes], object],
    ):
        self._evidence, self._images, self._batch, self._io = evidence, images, batch, io
        self._network, self._scheme = evidence.network, evidence.scheme
        self._accept = accept

    def run(self, *, with_layers: bool, with_repair: bool) -> tuple[bytes, Verification]:
        """The file and its verdict."""
        converted = convert(
            self._network, self._scheme, self._images, batch=self._batch, io=self._io
        )
        content = self._evidence.finished(converted)
        self._accept(content)  # before the accuracy is measured, which may take long
        report = self._evidence.verdict(content)
        images = self._images if with_repair and not report.passed else None
        if images is None and not (with_layers and self._scheme.name != "float32"):
            return content, report
        float_content = convert_float(self._network, batch=self._batch)
        ranking = self._layers(float_content, converted)
        if images is not None:
            observed = quantizer.observe(float_content, images.images)

            def quantize(kept_float: tuple[str, ...]) -> bytes:
                options = options_of(self._scheme, self._io, kept_float)
                return quantizer.rewrite(float_content, observed, options)

            content, report = repair_file(
                content,
                report,
                ranking,
                lambda kept_float: self._evidence.finished(quantize(kept_float)),
                self._evidence.verdict,
            )
            if report.repair is not None:
                ranking = self._layers(float_content, quantize(report.repair.tensors))
        return content, dataclasses.replace(report, layers=ranking)

    def _layers(self, float_content: bytes, converted: bytes) -> tuple[LayerError, ...]:
        """Of a file whose stem still is the network's."""
        names = layer_names(self._network.model)
        few = max(_LAYER_IMAGES, 0 if self._batch == "dynamic" else self._batch)
        images = self._evidence.golden[:few]
        return compare_layers(float_content, converted, images, names)
