"""What every export ends with: the verdict on a file, and the bundle or the rejection."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.data import Split
from keras_resnet.export import bundle as bundle_module
from keras_resnet.export import quantizer
from keras_resnet.export.bundle import Bundle
from keras_resnet.export.c_array import write_c_array
from keras_resnet.export.calibration import Calibration, pixel_digests
from keras_resnet.export.inspection import read_graph
from keras_resnet.export.metadata import add_metadata
from keras_resnet.export.report import render
from keras_resnet.export.runtime import Runner
from keras_resnet.export.schemes import Scheme
from keras_resnet.export.source import SourceNetwork, golden_images
from keras_resnet.export.stem import fold_stem
from keras_resnet.export.verification import (
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

_EVALUATION_BATCH = 64
_LIBRARIES = ("keras", "tensorflow", "ai-edge-litert")


class Evidence:
    """A network, reloaded from disk, and what there is to compare files made of it with it.

    Attributes:
        golden: raw images.
        expected: what the reloaded network makes of them.
        outcomes: what the network and the last judged file made of every evaluation image; None
            without any.
        suspicions: what is suspicious of the calibration images.
    """

    def __init__(
        self,
        network: SourceNetwork,
        scheme: Scheme,
        *,
        labels: tuple[str, ...],
        split: Split | None,
        max_drop: float,
        calibration: Calibration | None = None,
    ):
        """Reloads the network, and notes what it makes of the golden images.

        Args:
            network: what is exported.
            scheme: of the files to judge.
            labels: class names; empty for features.
            split: labelled images to compare the accuracy on, or None.
            max_drop: the largest loss of accuracy, as a fraction of them.
            calibration: images that a file was calibrated with.

        Raises:
            ValueError: if the network cannot be reloaded, or gives no finite numbers.
        """
        self.network, self.scheme, self.labels = network, scheme, labels
        self._split, self._max_drop, self._calibration = split, max_drop, calibration
        self._reference = SourceNetwork(reload(network.model), network.preprocessing, network.kind)
        self.outcomes: Outcomes | None = None
        self.suspicions: tuple[str, ...] = () if calibration is None else calibration.warnings
        self.golden = golden_images(split, calibration, network.shape, network.preprocessing)
        self.expected = self._reference.predict(self.golden)
        _check_finite(network, self.expected)

    def finished(self, content: bytes) -> bytes:
        """A file as it is handed over: with a faster stem, and the metadata that clients read."""
        if self.scheme.name == "int8":
            content = fold_stem(content)
        gives = " and ".join(self.network.outputs)
        description = f"Takes raw pixels 0..255 and gives {gives}; in {self.scheme.name}."
        return add_metadata(
            content, self.labels, name=self.network.model.name, description=description
        )

    def verdict(self, content: bytes, kept_float: Sequence[str] = ()) -> Verification:
        """Compares a file with the network.

        Args:
            content: the file.
            kept_float: names of tensors whose operators compute in float32 on purpose.

        Raises:
            ValueError: if LiteRT does not run it.
        """
        try:
            runner = Runner(content, threads=os.cpu_count())
        except RuntimeError as error:
            raise ValueError(
                "LiteRT refuses the file that was made of the network. Its kernels scale no sum up "
                "by 256 or more, as one would have to be whose result is next to nothing; networks "
                f"that were never trained may have such layers. Received: the model "
                f"{self.network.model.name!r}, and from LiteRT: {error}"
            ) from error
        accuracy = None
        if self._split is not None:
            shape, preprocessing = self.network.shape, self.network.preprocessing
            batches = self._split.batches(_EVALUATION_BATCH, shape, preprocessing)
            seen: set[bytes] = set()
            with self._split.own_errors():
                self.outcomes = outcomes(
                    self._reference.predict, runner, _noted(batches.as_numpy_iterator(), seen)
                )
            accuracy = self.outcomes.accuracy(self._max_drop)
            if self._calibration is not None:
                overlap = self._calibration.check_overlap(seen)
                self.suspicions = (*self._calibration.warnings, *overlap)
        return judge(
            self.scheme.name,
            real_scheme(read_graph(content), kept_float),
            compare(self.expected, self._outputs(runner)),
            accuracy,
            warnings=self.suspicions,
        )

    def publish(
        self,
        path: str | os.PathLike[str],
        content: bytes,
        report: Verification,
        *,
        converter: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        libraries: Sequence[str] = (),
        c_array: bool = False,
        force: bool = False,
    ) -> Bundle:
        """Writes the bundle; or, of a file that was rejected, the report beside `path`.

        Args:
            path: the directory to make.
            content: the file that was judged last.
            report: its verdict.
            converter: settings that the file was made with.
            facts: what else its manifest is to tell.
            libraries: distributions, beside the usual ones, that had a part in it.
            c_array: whether to put the file beside it as C++ source, see `write_c_array`.
            force: whether a bundle that is at `path` already may be replaced.

        Raises:
            ExportRejected: if the verdict is so; nothing is left at `path`.
            FileExistsError: if there is something at `path` already.
        """
        manifest = self._manifest(report, converter, libraries) | dict(facts or {})
        page = render(report, content, manifest, self.labels, self.outcomes)
        rejected = Path(f"{os.fspath(path).rstrip(os.sep)}.rejected.html")
        if not report.passed:
            with atomic_file(rejected) as temporary:
                Path(temporary).write_text(page, encoding="utf-8")
            raise ExportRejected(report)
        with atomic_directory(path, marker=bundle_module.MANIFEST, force=force) as directory:
            bundle_module.write_files(
                directory,
                content,
                self.labels,
                (self.golden, self.expected),
                manifest,
                report_html=page,
            )
            if c_array:
                write_c_array(Bundle.open(directory), directory)
        rejected.unlink(missing_ok=True)
        return Bundle.open(path)

    def _outputs(self, runner: Runner) -> Any:
        """What a file makes of the golden images, in the form of `SourceNetwork.predict`."""
        outputs = runner(self.golden)
        if self.network.kind == "features" and not isinstance(outputs, dict):
            return {self.network.outputs[0]: outputs}
        return tf.nn.softmax(outputs).numpy() if self.network.kind == "logits" else outputs

    def _manifest(
        self, report: Verification, converter: Mapping[str, Any], libraries: Sequence[str]
    ) -> dict[str, Any]:
        from keras_resnet import __version__

        model, images = self.network.model, self._calibration
        architecture = getattr(model, "architecture", None)
        return {
            "model": model.name,
            "architecture": architecture and architecture.to_dict(),
            "weights": {"sha256": bundle_module.array_digest(model.get_weights())},
            "scheme": self.scheme.name,
            "preprocessing": self.network.preprocessing.to_dict(),
            "calibration": images
            and {
                "source": images.source,
                "images": len(images.images),
                "method": quantizer.METHOD,
                "sha256": images.digest,
            },
            "converter": {**converter, "outputs": self.network.kind},
            "verification": report.to_dict(),
            "versions": {"keras_resnet": __version__}
            | {name: importlib.metadata.version(name) for name in (*_LIBRARIES, *libraries)},
        }


def _noted(
    batches: Iterator[tuple[np.ndarray, np.ndarray]], seen: set[bytes]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same batches, with the digests of their images noted."""
    for images, labels in batches:
        seen |= pixel_digests(images)
        yield images, labels


def _check_finite(network: SourceNetwork, expected: Any) -> None:
    arrays = expected.values() if isinstance(expected, dict) else [expected]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(
            "The model's own outputs are not finite numbers, so there is nothing to compare an "
            "export with; a very deep network that was never trained overflows. "
            f"Received: the model {network.model.name!r}"
        )
