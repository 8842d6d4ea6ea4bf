"""Pruning and clustering of the twin's kernels, by TFMOT's wrappers."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_resnet.export.optimize.legacy import tfmot
from keras_resnet.export.optimize.twin import Node, Twin

_KERNELS = ("Conv2D", "Dense")

# Of all steps; the network recovers in the other half.
_PRUNING_SHARE = 0.5
_PRUNING_UPDATES = 10


def prunable(twin: Twin, sparsity: float, steps: int) -> Any:
    """The twin with kernels that lose their smallest weights during the first half of the steps."""
    updates = max(1, min(_PRUNING_UPDATES, int(steps * _PRUNING_SHARE)))
    frequency = max(1, int(steps * _PRUNING_SHARE) // updates)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.0,
        final_sparsity=sparsity,
        begin_step=0,
        end_step=frequency * updates,
        frequency=frequency,
    )

    def wrap(node: Node, layer: Any) -> Any:
        if node.kind not in _KERNELS or not node.layer.trainable:
            return layer
        return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)

    return twin.build(wrap)


def clusterable(twin: Twin, clusters: int) -> Any:
    """The twin with kernels of which each has that many values at most."""

    def wrap(node: Node, layer: Any) -> Any:
        # TFMOT refuses to find more centroids than there are weights.
        if node.kind not in _KERNELS or np.prod(layer.kernel.shape) <= clusters:
            return layer
        return tfmot.clustering.keras.cluster_weights(
            layer,
            number_of_clusters=clusters,
            cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
        )

    return twin.build(wrap)


def kernels_of(model: Any) -> dict[str, np.ndarray]:
    """The kernels that pruning and clustering work on, by the names of their layers."""
    return {
        layer.name: np.asarray(layer.kernel)
        for layer in model.layers
        if type(layer).__name__ in _KERNELS
    }


def sparsity_of(model: Any) -> float:
    """The share of zeros in all kernels together."""
    kernels = kernels_of(model).values()
    return sum(int((k == 0).sum()) for k in kernels) / sum(k.size for k in kernels)
