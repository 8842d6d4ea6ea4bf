"""Is an exported file the network that it came from? Figures, and a verdict.

What compares a bundle with its own golden vectors runs on a device, without TensorFlow and Keras.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from keras_resnet.export.bundle import Bundle
from keras_resnet.export.inspection import read_graph
from keras_resnet.export.runtime import Classifier
from keras_resnet.export.schemes import get_scheme

Predict = Callable[[np.ndarray], np.ndarray]  # raw uint8 images to probabilities


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the exported probabilities are from the source model's on the golden images.

    Attributes:
        images: number of golden images.
        max_difference: largest difference of a probability.
        total_variation: mean share of the probability that moved to another class.
        top1_agreement: share of the images on which both name the same class.
    """

    images: int
    max_difference: float
    total_variation: float
    top1_agreement: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccuracyComparison:
    """Both networks on the same labelled images.

    Attributes:
        examples: number of images.
        source_correct: right in the source model.
        exported_correct: right in the exported file.
        only_source_correct: right in the source model alone.
        only_exported_correct: right in the exported file alone.
        max_drop: the largest drop that was allowed.
    """

    examples: int
    source_correct: int
    exported_correct: int
    only_source_correct: int
    only_exported_correct: int
    max_drop: float

    @property
    def source_accuracy(self) -> float:
        """Share of the images that the source model gets right."""
        return self.source_correct / self.examples

    @property
    def exported_accuracy(self) -> float:
        """Share of the images that the exported file gets right."""
        return self.exported_correct / self.examples

    @property
    def drop(self) -> float:
        """Accuracy lost, as a fraction of the images."""
        return (self.source_correct - self.exported_correct) / self.examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """The figures of a comparison, and what is wrong with them.

    Attributes:
        scheme: the scheme that the file claims.
        parity: on the golden images.
        accuracy: on evaluation data, or None if there were none.
        problems: why the file is rejected; empty if it is not.
    """

    scheme: str
    parity: Parity
    accuracy: AccuracyComparison | None = None
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the file may be handed over."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        values = dataclasses.asdict(self)
        if self.accuracy is not None:
            values["accuracy"] |= {
                "source_accuracy": self.accuracy.source_accuracy,
                "exported_accuracy": self.accuracy.exported_accuracy,
                "drop": self.accuracy.drop,
            }
        return values | {"problems": list(self.problems), "passed": self.passed}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Verification:
        """The inverse of `to_dict`."""
        accuracy = values["accuracy"]
        if accuracy is not None:
            fields = [field.name for field in dataclasses.fields(AccuracyComparison)]
            accuracy = AccuracyComparison(**{name: accuracy[name] for name in fields})
        return cls(
            scheme=values["scheme"],
            parity=Parity(**values["parity"]),
            accuracy=accuracy,
            problems=tuple(values["problems"]),
        )

    def __str__(self) -> str:
        parity = self.parity
        lines = [
            f"scheme {self.scheme}",
            f"golden images {parity.images}: top-1 agreement {parity.top1_agreement:.1%}, "
            f"largest difference {parity.max_difference:.2g}, "
            f"mean total variation {parity.total_variation:.2g}",
        ]
        if self.accuracy is not None:
            accuracy = self.accuracy
            lines.append(
                f"evaluation images {accuracy.examples}: accuracy "
                f"{accuracy.source_accuracy:.2%} -> {accuracy.exported_accuracy:.2%} "
                f"(right only before: {accuracy.only_source_correct}, "
                f"only after: {accuracy.only_exported_correct})"
            )
        lines += [f"REJECTED: {problem}" for problem in self.problems]
        return "\n".join([*lines, "passed"] if self.passed else lines)


class ExportRejected(RuntimeError):  # noqa: N818, it is the verdict's name
    """An export that differs too much from its source; nothing was left at the destination.

    Attributes:
        report: the `Verification`.
    """

    def __init__(self, report: Verification):
        super().__init__("; ".join(report.problems))
        self.report = report


def verify(path: str | os.PathLike[str] | Bundle, *, threads: int | None = None) -> Verification:
    """Repeats the check of a bundle against its golden vectors, on any machine.

    Args:
        path: the bundle.
        threads: of the CPU.

    Raises:
        FileNotFoundError: if there is no such bundle.
        BundleError: if it is no bundle, or any of its files was changed.
    """
    classifier = Classifier(path, threads=threads)
    bundle = classifier.bundle
    images, expected = bundle.golden()
    return judge(
        bundle.scheme,
        read_graph(bundle.model_path).scheme,
        compare(expected, classifier.probabilities(images)),
    )


def judge(
    scheme_name: str, real_scheme: str, parity: Parity, accuracy: AccuracyComparison | None = None
) -> Verification:
    """The verdict on figures, by the limits of the scheme and `max_drop`."""
    scheme = get_scheme(scheme_name)
    problems = []
    if real_scheme != scheme_name:
        problems.append(f"the file claims the scheme {scheme_name} and is really {real_scheme}")
    # Written so that a NaN is a problem too.
    if scheme.max_difference is not None and not parity.max_difference <= scheme.max_difference:
        problems.append(
            f"a probability differs by {parity.max_difference:.2g} from the source model's; "
            f"{scheme_name} may differ by {scheme.max_difference:.2g}"
        )
    if not parity.total_variation <= scheme.max_total_variation:
        problems.append(
            f"{parity.total_variation:.1%} of the probability moved to other classes on the golden "
            f"images; {scheme_name} may move {scheme.max_total_variation:.2%}"
        )
    if accuracy is not None and not accuracy.drop <= accuracy.max_drop:
        problems.append(
            f"accuracy drops by {accuracy.drop:.2%} of {accuracy.examples} images, from "
            f"{accuracy.source_accuracy:.2%} to {accuracy.exported_accuracy:.2%}; at most "
            f"{accuracy.max_drop:.2%} is allowed"
        )
    return Verification(
        scheme=scheme_name, parity=parity, accuracy=accuracy, problems=tuple(problems)
    )


def compare(expected: np.ndarray, actual: np.ndarray) -> Parity:
    """Probabilities `(n, classes)` of the source model and of the exported file."""
    difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    return Parity(
        images=len(expected),
        max_difference=float(difference.max()),
        total_variation=float(difference.sum(axis=1).mean() / 2),
        top1_agreement=float((expected.argmax(axis=1) == actual.argmax(axis=1)).mean()),
    )


def compare_accuracy(
    source: Predict,
    exported: Predict,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    max_drop: float,
) -> AccuracyComparison:
    """Both networks on batches of (raw uint8 images, labels); every example counts once."""
    source_right, exported_right = [], []
    for images, labels in batches:
        source_right.append(source(images).argmax(axis=1) == labels)
        exported_right.append(exported(images).argmax(axis=1) == labels)
    before, after = np.concatenate(source_right), np.concatenate(exported_right)
    return AccuracyComparison(
        examples=len(before),
        source_correct=int(before.sum()),
        exported_correct=int(after.sum()),
        only_source_correct=int((before & ~after).sum()),
        only_exported_correct=int((after & ~before).sum()),
        max_drop=max_drop,
    )
