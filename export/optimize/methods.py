"""Quantization-aware training, pruning and clustering: what a user calls."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import data as data_module
from keras_resnet.data import ImageData
from keras_resnet.export.bundle import MANIFEST, Bundle, check_labels
from keras_resnet.export.evidence import Evidence
from keras_resnet.export.optimize import quantization
from keras_resnet.export.optimize import sparsity as _sparsity
from keras_resnet.export.optimize.legacy import tfmot
from keras_resnet.export.optimize.training import FineTuning, check_recipe, refuse_grouped
from keras_resnet.export.optimize.twin import Twin
from keras_resnet.export.schemes import SCHEMES
from keras_resnet.export.source import SourceNetwork
from keras_resnet.files import refuse_existing_directory
from keras_resnet.models import check_classes
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.checkpoints import Checkpoints
from keras_resnet.training.recipes import Recipe, get_recipe
from keras_resnet.training.runs import RunWriter, refuse_existing_run
from keras_resnet.training.strategies import resolve_strategy

# Batches from which quantization-aware training takes its first ranges.
_RANGE_BATCHES = 8

_HISTORY = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")
_LIBRARIES = ("tensorflow-model-optimization", "tf-keras")


@dataclasses.dataclass(frozen=True)
class Optimized:
    """A network with pruned or clustered kernels; `export.to_tflite` takes its `model`.

    Attributes:
        model: the Keras 3 model.
        method: `"prune"` or `"cluster"`.
        settings: of the method.
        history: one dictionary per epoch.
        correct_before: test images that the given model names right.
        correct: test images that this one names right.
        examples: number of test images.
        sparsity: the share of zeros in all kernels together.
    """

    model: keras.Model
    method: str
    settings: dict[str, Any]
    history: list[dict[str, float]]
    correct_before: int
    correct: int
    examples: int
    sparsity: float
    _writer: Callable[[Path], RunWriter] = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Its figures: plain Python values, ready for JSON."""
        return {
            "method": self.method,
            **self.settings,
            "sparsity": self.sparsity,
            "correct_before": self.correct_before,
            "correct": self.correct,
            "examples": self.examples,
            "history": self.history,
        }

    def save(self, run_dir: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Writes a run directory, which `training.load_run` and `keras-resnet export` read.

        Raises:
            FileExistsError: if there is a run already and `force` is off.
        """
        refuse_existing_run(run_dir, force)
        accuracy = self.correct / self.examples
        self._writer(Path(run_dir)).save(
            self.model,
            self.history,
            "finished",
            test={"accuracy": accuracy, "correct": self.correct, "examples": self.examples},
            optimization={k: v for k, v in self.to_dict().items() if k != "history"},
        )
        return Path(run_dir)


def quantization_aware(
    model: keras.Model,
    data: ImageData | str,
    recipe: Recipe | str,
    path: str | os.PathLike[str],
    *,
    max_drop: float = 0.01,
    labels: Sequence[str] | None = None,
    strategy: str | tf.distribute.Strategy | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    verbose: bool = True,
    force: bool = False,
) -> Bundle:
    """Trains on with the rounding of an int8 file in the network, and writes the verified bundle.

    Jacob et al. 2018, arXiv:1712.05877, section 3. The bundle is verified as every other: its
    golden outputs and the accuracy that it is compared with are those of the given model in float.

    Args:
        model: a trained functional classifier; it stays as it is.
        data: a source, or its name: its training split is trained on, and the accuracy compared on
            its test split.
        recipe: how to go on training, or the name of a recipe; see `fine_tuning`.
        path: the directory to make.
        max_drop: the largest loss of accuracy on the test images, as a fraction of them.
        labels: class names; None takes the data's.
        strategy: see `prune`.
        preprocessing: see `prune`.
        seed: of the order of the images and of their augmentation.
        verbose: whether to show the progress.
        force: whether a bundle that is at `path` already may be replaced.

    Returns:
        The bundle: raw uint8 pixels `(1, height, width, channels)` to float32 probabilities.

    Raises:
        ExportRejected: if the file differs too much from the model; nothing is left at `path`.
        FileExistsError: if there is something at `path` already.
        ValueError: see `prune`.
        UnsupportedLayerError: for a layer that has no 8-bit counterpart, before training.
        TrainingError: see `prune`.
    """
    if not 0 <= max_drop <= 1:
        raise ValueError(
            f"Argument `max_drop` must be a fraction in [0, 1]. Received: max_drop={max_drop!r}"
        )
    refuse_existing_directory(path, marker=MANIFEST, force=force)
    job = _Job(model, data, recipe, strategy, preprocessing, seed, verbose)
    quantization.check_layers(job.twin)
    names = tuple(labels or job.data.class_names)
    check_labels(names, model.output_shape[-1])
    with job.scope():
        network = quantization.fake_quantized(job.twin)
        quantization.set_ranges(network, job.twin, job.first_values(_RANGE_BATCHES))
        tuning = job.train(network, after_epoch=lambda: quantization.set_kernel_ranges(network))
    evidence = Evidence(
        job.twin.source, SCHEMES["int8"], labels=names, split=job.data.test, max_drop=max_drop
    )
    content = evidence.finished(quantization.convert(network, job.twin))
    trained = {
        "method": "qat",
        "data": job.data.name,
        "recipe": job.recipe.to_dict(),
        "seed": seed,
        # Without the speed, which no two runs have in common.
        "history": [{k: v for k, v in row.items() if k in _HISTORY} for row in tuning.history],
    }
    return evidence.publish(
        path,
        content,
        evidence.verdict(content),
        converter={"batch": 1, "io": "auto"},
        facts={"optimization": trained},
        libraries=_LIBRARIES,
        force=force,
    )


def prune(
    model: keras.Model,
    data: ImageData | str,
    recipe: Recipe | str,
    *,
    sparsity: float = 0.5,
    strategy: str | tf.distribute.Strategy | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> Optimized:
    """Magnitude pruning: sets the smallest weights of every kernel to zero and trains the others.

    Zhu and Gupta 2017, arXiv:1710.01878: the sparsity rises over the first half of the training, by
    their cubic schedule. A file with zeros is as large as before, and smaller when it is packed.

    Args:
        model: a trained functional classifier; it stays as it is.
        data: a source, or its name: the training split is trained on, the test split measured.
        recipe: how to go on training, or the name of a recipe; see `fine_tuning`.
        sparsity: share of the zeros in each kernel, in (0, 1).
        strategy: see `keras_resnet.training.resolve_strategy`; None means "auto".
        preprocessing: how the model's input is made; None takes the model's own.
        seed: of the order of the images and of their augmentation.
        verbose: whether to show the progress.

    Raises:
        ValueError: if an argument is out of range, model, data and recipe do not fit together, or
            batch normalization was never warmed up.
        UnsupportedLayerError: for a layer that has no counterpart in Keras 2, before training.
        TrainingError: if the loss is no longer a finite number.
    """
    if not isinstance(sparsity, float) or not 0.0 < sparsity < 1.0:
        raise ValueError(
            f"Argument `sparsity` must be a fraction in (0, 1). Received: sparsity={sparsity!r}"
        )
    job = _Job(model, data, recipe, strategy, preprocessing, seed, verbose)
    with job.scope():
        network = _sparsity.prunable(job.twin, sparsity, job.steps)
        masks = tfmot.sparsity.keras.UpdatePruningStep()
        masks.set_model(network)
        masks.on_train_begin()
        tuning = job.train(network, after_epoch=lambda: masks.on_epoch_end(None))
        stripped = tfmot.sparsity.keras.strip_pruning(network)
    return job.optimized("prune", {"target_sparsity": sparsity}, tuning, stripped)


def cluster(
    model: keras.Model,
    data: ImageData | str,
    recipe: Recipe | str,
    *,
    clusters: int = 16,
    strategy: str | tf.distribute.Strategy | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> Optimized:
    """Weight clustering: leaves every kernel that many different values, which are trained.

    Han et al. 2016, arXiv:1510.00149, section 3. A file is as large as before, and smaller when it
    is packed.

    Args:
        model: a trained functional classifier; it stays as it is.
        data: a source, or its name.
        recipe: how to go on training, or the name of a recipe; see `fine_tuning`.
        clusters: different values per kernel, at least 2.
        strategy: see `prune`.
        preprocessing: see `prune`.
        seed: of the order of the images and of their augmentation, and of the first centroids.
        verbose: whether to show the progress.

    Raises:
        ValueError: see `prune`.
        UnsupportedLayerError: see `prune`.
        TrainingError: see `prune`.
    """
    if isinstance(clusters, bool) or not isinstance(clusters, int) or clusters < 2:
        raise ValueError(
            f"Argument `clusters` must be an integer of at least 2. Received: clusters={clusters!r}"
        )
    job = _Job(model, data, recipe, strategy, preprocessing, seed, verbose)
    with job.scope():
        network = _sparsity.clusterable(job.twin, clusters)
        tuning = job.train(network)
        stripped = tfmot.clustering.keras.strip_clustering(network)
    return job.optimized("cluster", {"clusters": clusters}, tuning, stripped)


class _Job:
    """What the methods share: everything is checked, and the twin proved, before training.

    Attributes:
        twin: of the given model.
        data: the source.
        recipe: as it was given.
        preprocessing: of the model.
        steps: of the whole training.
        seed: as it was given.
    """

    def __init__(
        self,
        model: keras.Model,
        data: ImageData | str,
        recipe: Recipe | str,
        strategy: str | tf.distribute.Strategy | None,
        preprocessing: Preprocessing | None,
        seed: int,
        verbose: bool,
    ):
        self.recipe = get_recipe(recipe)
        self.preprocessing = preprocessing or Preprocessing.from_model(model)
        self.data = data_module.load(data) if isinstance(data, str) else data
        check_classes(model, self.data.name, self.data.class_names)
        self._strategy = resolve_strategy(strategy)
        check_recipe(self.recipe, self.data, self._strategy.num_replicas_in_sync)
        self.steps = self.recipe.epochs * (self.data.train.examples // self.recipe.batch_size)
        self.seed, self._verbose = seed, verbose
        # What Keras 2 and TFMOT draw at random comes from the global generators.
        keras.utils.set_random_seed(seed)
        self.twin = Twin(SourceNetwork(model, self.preprocessing))
        refuse_grouped(self.twin)

    def scope(self) -> Any:
        """That of the strategy."""
        return self._strategy.scope()

    def first_values(self, count: int) -> list[np.ndarray]:
        """Preprocessed training images, some batches of them."""
        batches = self.data.train.batches(
            self.recipe.batch_size,
            self.twin.source.shape,
            self.preprocessing,
            shuffle=(self.seed, 0),
            remainder="drop",
        )
        with self.data.train.own_errors():
            return [self.preprocessing(x) for x, _ in batches.take(count).as_numpy_iterator()]

    def train(self, network: Any, after_epoch: Callable[[], Any] | None = None) -> FineTuning:
        """Trains a `tf_keras` model; in the scope."""
        tuning = FineTuning(
            network, self.data, self.preprocessing, self.recipe, self._strategy, self.seed
        )
        tuning.run(after_epoch=after_epoch, verbose=self._verbose)
        return tuning

    def optimized(
        self, method: str, settings: dict[str, Any], tuning: FineTuning, stripped: Any
    ) -> Optimized:
        """The result of a method whose network is an ordinary one again."""
        model = self.twin.give_back(stripped)
        before, after = (
            FineTuning(
                network, self.data, self.preprocessing, self.recipe, self._strategy, self.seed
            ).evaluate(self.data.test)[1]
            for network in (self.twin.model, stripped)
        )

        def writer(directory: Path) -> RunWriter:
            return RunWriter(
                directory,
                model,
                self.data,
                self.recipe,
                self.preprocessing,
                self._strategy.num_replicas_in_sync,
                {"seed": self.seed},
                Checkpoints(directory / "checkpoints", {}),
            )

        return Optimized(
            model=model,
            method=method,
            settings=settings,
            history=tuning.history,
            correct_before=before,
            correct=after,
            examples=self.data.test.examples,
            sparsity=_sparsity.sparsity_of(model),
            _writer=writer,
        )
