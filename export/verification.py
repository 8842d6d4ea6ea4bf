"""Is an exported file the network that it came from? Figures, and a verdict.

What compares a bundle with its own golden vectors runs on a device, without TensorFlow and Keras.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet.export.bundle import Bundle
from keras_resnet.export.graph import Graph, read_graph
from keras_resnet.export.layers import LayerError, table
from keras_resnet.export.repair import Repair
from keras_resnet.export.runtime import Classifier, Runner
from keras_resnet.export.schemes import get_scheme

if TYPE_CHECKING:
    import keras

Predict = Callable[[np.ndarray], np.ndarray]  # raw uint8 images to probabilities

# Largest relative error of features. Quantization gives an eighth to a third of these; pixels other
# than the network was trained on give 1.
_MAX_FEATURE_ERROR = {
    "float32": 1e-3,
    "float16": 0.01,
    "int16x8": 0.05,
    "dynamic_int8": 0.3,
    "int8": 0.5,
}
# The quantile of the standard normal distribution that leaves 2.5 % on either side.
_Z = 1.959963984540054
# Of the layers, in text; report.html lists all of them.
_LAYERS_SHOWN = 10
# Beyond this many images, a number of images to measure on is no advice.
_MOST_IMAGES = 10_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the exported outputs are from the source model's on the golden images.

    Attributes:
        images: number of golden images.
        max_difference: largest difference of a probability, or of a feature.
        mean_difference: mean difference of a probability, or of a feature; None in bundles of
            schema version 1, which did not record it.
        total_variation: mean share of the probability that moved to another class; None of a
            network that gives features.
        top1_agreement: share of the images on which both name the same class; None likewise.
        relative_error: of features, the root of the energy of the difference over that of the
            features, of the worst output; None of a classifier.
    """

    images: int
    max_difference: float
    mean_difference: float | None = None
    total_variation: float | None = None
    top1_agreement: float | None = None
    relative_error: float | None = None

    def __str__(self) -> str:
        parts = []
        if self.top1_agreement is not None:
            parts.append(f"top-1 agreement {self.top1_agreement:.1%}")
        if self.relative_error is not None:
            parts.append(f"relative error {self.relative_error:.2g}")
        mean = "" if self.mean_difference is None else f" (mean {self.mean_difference:.2g})"
        parts.append(f"largest difference {self.max_difference:.2g}{mean}")
        if self.total_variation is not None:
            parts.append(f"mean total variation {self.total_variation:.2g}")
        return f"golden images {self.images}: {', '.join(parts)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccuracyComparison:
    """Both networks on the same labelled images.

    Attributes:
        examples: number of images.
        source_correct: right in the source model.
        exported_correct: right in the exported file.
        only_source_correct: right in the source model alone.
        only_exported_correct: right in the exported file alone.
        max_drop: the largest drop that was allowed, as a fraction of the images.
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

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the drop on images like these (`paired_interval`)."""
        return paired_interval(self.only_source_correct, self.only_exported_correct, self.examples)

    @property
    def p_value(self) -> float:
        """How often two equally good networks would differ as much as these (`mcnemar`)."""
        return mcnemar(self.only_source_correct, self.only_exported_correct)

    def images_needed(self) -> int | None:
        """How many images with the same shares would put the whole interval within `max_drop`.

        None if no number would, because the drop itself is not below `max_drop`.
        """
        only_source = self.only_source_correct / self.examples
        only_exported = self.only_exported_correct / self.examples

        def settles(count: int) -> bool:
            upper = paired_interval(only_source * count, only_exported * count, count)[1]
            return upper <= self.max_drop

        if not self.drop < self.max_drop or not settles(_MOST_IMAGES):
            return None
        low, high = 0, _MOST_IMAGES
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if settles(middle) else (middle, high)
        return high

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, with the figures that follow from the counts."""
        return dataclasses.asdict(self) | {
            "source_accuracy": self.source_accuracy,
            "exported_accuracy": self.exported_accuracy,
            "drop": self.drop,
            "interval": list(self.interval),
            "p_value": self.p_value,
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"evaluation images {self.examples}: accuracy "
            f"{self.source_accuracy:.2%} -> {self.exported_accuracy:.2%} "
            f"(right only before: {self.only_source_correct}, "
            f"only after: {self.only_exported_correct})\n"
            f"drop {self.drop:.2%}, 95% interval {low:.2%} to {high:.2%}, "
            f"McNemar p = {self.p_value:.2g}; at most {self.max_drop:.2%} is allowed"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """The figures of a comparison, and what is wrong with them.

    Attributes:
        scheme: the scheme that the file claims.
        parity: on the golden images.
        accuracy: on evaluation data, or None if there were none.
        problems: why the file is rejected; empty if it is not.
        warnings: what the figures do not show, or what may go wrong elsewhere.
        layers: the error that every layer adds, the worst first; empty if it was not measured.
        repair: which layers were left in float to pass, or None if none were.
    """

    scheme: str
    parity: Parity
    accuracy: AccuracyComparison | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    layers: tuple[LayerError, ...] = ()
    repair: Repair | None = None

    @property
    def passed(self) -> bool:
        """Whether the file may be handed over."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return {
            "scheme": self.scheme,
            "parity": dataclasses.asdict(self.parity),
            "accuracy": self.accuracy and self.accuracy.to_dict(),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "layers": [layer.to_dict() for layer in self.layers],
            "repair": self.repair and self.repair.to_dict(),
            "passed": self.passed,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Verification:
        """The inverse of `to_dict`; also reads what schema version 1 wrote."""
        accuracy, repair = values["accuracy"], values.get("repair")
        if accuracy is not None:
            fields = [field.name for field in dataclasses.fields(AccuracyComparison)]
            accuracy = AccuracyComparison(**{name: accuracy[name] for name in fields})
        return cls(
            scheme=values["scheme"],
            parity=Parity(**values["parity"]),
            accuracy=accuracy,
            problems=tuple(values["problems"]),
            warnings=tuple(values.get("warnings", ())),
            layers=tuple(LayerError.from_dict(layer) for layer in values.get("layers", ())),
            repair=None if repair is None else Repair.from_dict(repair),
        )

    def __str__(self) -> str:
        lines = [f"scheme {self.scheme}", str(self.parity)]
        if self.accuracy is not None:
            lines.append(str(self.accuracy))
        if self.repair is not None:
            lines.append(str(self.repair))
        if self.layers:
            lines += ["layers, the worst first:", *table(self.layers[:_LAYERS_SHOWN])]
        lines += [f"warning: {warning}" for warning in self.warnings]
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
    bundle = path if isinstance(path, Bundle) else Bundle.open(path)
    images, expected = bundle.golden()
    if isinstance(expected, dict):  # of features, which a Classifier has no names for
        actual = Runner(bundle.model_path, threads=threads)(images)
    else:
        actual = Classifier(bundle, threads=threads).probabilities(images)
    repair = bundle.manifest["verification"].get("repair")
    kept = () if repair is None else Repair.from_dict(repair).tensors
    return judge(
        bundle.scheme,
        real_scheme(read_graph(bundle.model_path), kept),
        compare(expected, actual),
    )


def judge(
    scheme_name: str,
    real_scheme: str,
    parity: Parity,
    accuracy: AccuracyComparison | None = None,
    *,
    warnings: Iterable[str] = (),
) -> Verification:
    """The verdict on figures, by the limits of the scheme and `max_drop`.

    Args:
        scheme_name: what the file claims.
        real_scheme: what it is.
        parity: on the golden images.
        accuracy: on evaluation data. A drop beyond `max_drop` is a problem; an interval of the
            drop that reaches beyond it is a warning.
        warnings: what else there is to say of the export.
    """
    problems, warnings = _parity_problems(scheme_name, parity), list(warnings)
    if real_scheme != scheme_name:
        problems.append(f"the file claims the scheme {scheme_name} and is really {real_scheme}")
    if accuracy is not None and not accuracy.drop <= accuracy.max_drop:
        problems.append(
            f"accuracy drops by {accuracy.drop:.2%} of {accuracy.examples} images, from "
            f"{accuracy.source_accuracy:.2%} to {accuracy.exported_accuracy:.2%}; at most "
            f"{accuracy.max_drop:.2%} is allowed"
        )
    elif accuracy is not None and accuracy.interval[1] > accuracy.max_drop:
        warnings.append(_too_few_images(accuracy))
    return Verification(
        scheme=scheme_name,
        parity=parity,
        accuracy=accuracy,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _parity_problems(scheme_name: str, parity: Parity) -> list[str]:
    scheme, problems = get_scheme(scheme_name), []
    # Written so that a NaN is a problem too.
    if parity.relative_error is not None:
        limit = _MAX_FEATURE_ERROR[scheme_name]
        if not parity.relative_error <= limit:
            problems.append(
                f"the features differ by {parity.relative_error:.2g} of their size from the source "
                f"model's; {scheme_name} may differ by {limit:.2g}"
            )
        return problems
    if scheme.max_difference is not None and not parity.max_difference <= scheme.max_difference:
        problems.append(
            f"a probability differs by {parity.max_difference:.2g} from the source model's; "
            f"{scheme_name} may differ by {scheme.max_difference:.2g}"
        )
    moved = math.nan if parity.total_variation is None else parity.total_variation
    if not moved <= scheme.max_total_variation:
        problems.append(
            f"{moved:.1%} of the probability moved to other classes on the golden images; "
            f"{scheme_name} may move {scheme.max_total_variation:.2%}"
        )
    return problems


def _too_few_images(accuracy: AccuracyComparison) -> str:
    needed = accuracy.images_needed()
    advice = "" if needed is None else f"; about {needed:,} images like these would tell"
    return (
        f"{accuracy.examples:,} images leave room for a drop of {accuracy.interval[1]:.2%} (95% "
        f"interval), more than the {accuracy.max_drop:.2%} allowed{advice}"
    )


def real_scheme(graph: Graph, kept_float: Collection[str] = ()) -> str:
    """The scheme that a file really has, apart from the layers that a repair left in float.

    Args:
        graph: of the file.
        kept_float: names of the tensors whose operators were left in float.

    Returns:
        A name from `SCHEMES`, or `"mixed"` where the other layers do not agree.
    """
    if not kept_float:
        return graph.scheme
    kept = {tensor.index for tensor in graph.tensors if tensor.name in kept_float}
    of_kept = [op for op in graph.operators if kept.intersection(op.outputs)]
    touched = {tensor for op in of_kept for tensor in (*op.inputs, *op.outputs)}

    def belongs(op: Any) -> bool:
        """Whether it is a kept operator, or converts to it or from it."""
        converts = op.name in ("QUANTIZE", "DEQUANTIZE")
        return op in of_kept or (converts and bool(touched.intersection((*op.inputs, *op.outputs))))

    rest = tuple(op for op in graph.operators if not belongs(op))
    return dataclasses.replace(graph, operators=rest).scheme


def compare(
    expected: np.ndarray | Mapping[str, np.ndarray], actual: np.ndarray | Mapping[str, np.ndarray]
) -> Parity:
    """Outputs of the source model and of the exported file for the same images.

    Args:
        expected: probabilities `(n, classes)`, or features `(n, ...)` by the names of the outputs.
        actual: likewise; the only output of features also as it is.

    Raises:
        ValueError: if the two are not of the same outputs and shapes.
    """
    if isinstance(expected, Mapping) and len(expected) == 1 and not isinstance(actual, Mapping):
        actual = dict.fromkeys(expected, actual)
    if isinstance(expected, Mapping) != isinstance(actual, Mapping):
        raise ValueError("Probabilities and features cannot be compared with each other")
    ours, theirs = (
        dict(outputs) if isinstance(outputs, Mapping) else {"probabilities": outputs}
        for outputs in (expected, actual)
    )
    shapes = [{name: array.shape for name, array in side.items()} for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Both must give the same outputs. Received: {shapes[0]} and, exported, {shapes[1]}"
        )
    differences = {name: np.abs(ours[name].astype(np.float64) - theirs[name]) for name in ours}
    figures: dict[str, Any] = {
        "images": len(next(iter(ours.values()))),
        "max_difference": float(np.max([array.max() for array in differences.values()])),
        "mean_difference": float(np.mean([array.mean() for array in differences.values()])),
    }
    if isinstance(expected, Mapping):
        errors = [_relative(differences[name], array) for name, array in ours.items()]
        return Parity(**figures, relative_error=float(np.max(errors)))
    (moved,), (before,), (after,) = differences.values(), ours.values(), theirs.values()
    return Parity(
        **figures,
        total_variation=float(moved.sum(axis=1).mean() / 2),
        top1_agreement=float((before.argmax(axis=1) == after.argmax(axis=1)).mean()),
    )


def _relative(difference: np.ndarray, expected: np.ndarray) -> float:
    """Root of the energy of a difference over that of what it is a difference from."""
    noise = float(np.square(difference).sum())
    energy = float(np.square(expected, dtype=np.float64).sum())
    # Nothing to differ from: any difference at all is too much.
    return math.sqrt(noise / energy) if energy > 0 else (math.inf if noise else 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """What both networks made of the same labelled images, one by one.

    Attributes:
        labels: the true classes, int `(n,)`.
        source: the classes that the source model names.
        exported: the classes that the exported file names.
    """

    labels: np.ndarray
    source: np.ndarray
    exported: np.ndarray

    def accuracy(self, max_drop: float) -> AccuracyComparison:
        """The counts; every image counts once."""
        before, after = self.source == self.labels, self.exported == self.labels
        return AccuracyComparison(
            examples=len(self.labels),
            source_correct=int(before.sum()),
            exported_correct=int(after.sum()),
            only_source_correct=int((before & ~after).sum()),
            only_exported_correct=int((after & ~before).sum()),
            max_drop=max_drop,
        )

    def confusion(self, classes: int) -> np.ndarray:
        """Counts `(classes, classes)`: true classes down, those the exported file names across."""
        return _count_pairs(self.labels, self.exported, classes)

    def source_confusion(self, classes: int) -> np.ndarray:
        """Counts `(classes, classes)`: true classes down, those the source model names across."""
        return _count_pairs(self.labels, self.source, classes)


def _count_pairs(rows: np.ndarray, columns: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def outcomes(
    source: Predict, exported: Predict, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Outcomes:
    """Runs both networks on batches of (raw uint8 images, labels).

    Raises:
        ValueError: if there are no images.
    """
    rows = [
        (labels, source(images).argmax(axis=1), exported(images).argmax(axis=1))
        for images, labels in batches
    ]
    if not rows:
        raise ValueError("Evaluation data must hold images to compare accuracy on. Received: none")
    labels, before, after = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return Outcomes(labels=labels, source=before, exported=after)


def compare_accuracy(
    source: Predict,
    exported: Predict,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    max_drop: float,
) -> AccuracyComparison:
    """Both networks on batches of (raw uint8 images, labels); every example counts once."""
    return outcomes(source, exported, batches).accuracy(max_drop)


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test of two classifiers on the same images.

    Images that both get right, or both wrong, say nothing of which is better. If neither is, each
    of the others is a fair coin; this is the two-sided binomial test of that (Q. McNemar,
    Psychometrika 12, 1947, with the exact distribution in place of the chi-squared one).

    Args:
        only_first: images that only the first classifier gets right.
        only_second: images that only the second classifier gets right.

    Returns:
        The p-value: the probability of a split at least as uneven as this one, in (0, 1].
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    term = total = 1  # in units of 2**-count, in integers, so that nothing is rounded
    for i in range(fewer):
        term = term * (count - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / 2**count)


def paired_interval(only_first: float, only_second: float, images: float) -> tuple[float, float]:
    """95 % confidence interval of the difference of two accuracies on the same images.

    The score interval of T. Tango (Statistics in Medicine 17, 1998, 891-908): all differences that
    a score test does not reject at 5 %. Unlike the textbook (Wald) interval, it does not shrink to
    nothing when the classifiers never disagree: with n images and no disagreement it reaches to
    3.84 / (n + 3.84) on both sides.

    Args:
        only_first: images that only the first classifier gets right.
        only_second: images that only the second classifier gets right.
        images: of all.

    Returns:
        The smallest and the largest difference (first minus second), within -1...1.
    """
    estimate = (only_first - only_second) / images

    def score(difference: float) -> float:
        """How many standard deviations the estimate is above a supposed difference."""
        second = _restricted_share(only_first, only_second, images, difference)
        variance = (2 * second + difference * (1 - difference)) / images
        deviation = estimate - difference
        return deviation / math.sqrt(variance) if variance > 0 else math.copysign(1e9, deviation)

    return _crossing(score, _Z, -1.0, estimate), _crossing(score, -_Z, estimate, 1.0)


def _restricted_share(b: float, c: float, n: float, difference: float) -> float:
    """Likeliest share of images right in the second alone, if the first is better by `difference`.

    The larger root of 2n q² + B q + C = 0, which the likelihood of (b, c, n - b - c) gives when its
    first share is q + difference.
    """
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    return (math.sqrt(linear**2 - 8 * n * constant) - linear) / (4 * n)


def _crossing(falling: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function takes a value, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > level else (low, middle)
    return (low + high) / 2


def reload(model: keras.Model) -> keras.Model:
    """The model as it comes back from disk: what the exported file has to equal.

    Whatever the model holds in memory and does not save is not in it, and nothing that the
    conversion does to the model in memory can reach it.

    Raises:
        ValueError: if it cannot be saved, or not be loaded again without executing code.
    """
    from keras_resnet.models import load_model

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.keras"
        try:
            model.save(path)
            return load_model(path)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ValueError(
                "A model is exported against its own copy from disk, so it must be one that can be "
                "saved as .keras and loaded in safe mode: no Lambda layers, and classes of your "
                "own registered with keras.saving.register_keras_serializable. "
                f"Received: the model {model.name!r}, which fails with: {error}"
            ) from error
