"""Names for `tf.distribute` strategies."""

from __future__ import annotations

import os

import tensorflow as tf


def resolve_strategy(
    strategy: str | tf.distribute.Strategy | None = None,
) -> tf.distribute.Strategy:
    """The strategy of a name.

    Args:
        strategy: `"auto"` or None (multi-worker if the environment sets `TF_CONFIG`, mirrored if
            there are several GPUs, else default), `"default"`, `"mirrored"`, `"mirrored:N"` (the
            first N GPUs, or without GPUs the first N logical CPU devices), `"multiworker"`, or a
            strategy, which passes as it is.

    Raises:
        ValueError: for another name, or for more devices than there are.
    """
    if isinstance(strategy, tf.distribute.Strategy):
        return strategy
    if strategy in (None, "auto"):
        if os.environ.get("TF_CONFIG"):
            strategy = "multiworker"
        else:
            several = len(tf.config.list_logical_devices("GPU")) > 1
            strategy = "mirrored" if several else "default"
    if strategy == "default":
        return tf.distribute.get_strategy()
    if strategy == "multiworker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    kind, _, count = str(strategy).partition(":")
    if kind != "mirrored" or (count and not (count.isdecimal() and int(count))):
        raise ValueError(
            "Argument `strategy` must be 'auto', 'default', 'mirrored', 'mirrored:N', "
            f"'multiworker' or a tf.distribute.Strategy. Received: {strategy!r}"
        )
    devices = [
        device.name
        for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    ]
    wanted = int(count) if count else len(devices)
    if wanted > len(devices):
        raise ValueError(
            f"Strategy 'mirrored:{wanted}' needs {wanted} devices; this machine has "
            f"{len(devices)}: {devices}"
        )
    return tf.distribute.MirroredStrategy(devices[:wanted])


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().jobs
    )
