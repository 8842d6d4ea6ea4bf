"""The network that is trained: in the strategy's scope, and out of it again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from keras_resnet.training.arguments import check_input


def in_scope(model: keras.Model | Callable[[], keras.Model], precision: str | None) -> keras.Model:
    """The network to train, with its variables in the scope that this is called in."""
    if not isinstance(model, keras.Model):
        if not callable(model):
            raise ValueError(
                "Argument `model` must be a functional keras.Model or a function that builds one. "
                f"Received: {type(model).__name__}"
            )
        with _policy(precision):
            model = model()
        if not isinstance(model, keras.Model):
            raise ValueError(
                "The function `model` must return a functional keras.Model. "
                f"Received: {type(model).__name__}"
            )
        network = model
    elif precision is not None:
        raise ValueError(
            "A ready model has its precision; give a function that builds one, or leave "
            f"`precision` out. Received: precision={precision!r}"
        )
    else:
        network = _copy(model) if tf.distribute.has_strategy() else model
    check_input(network)
    if any(layer.variable_dtype in ("float16", "bfloat16") for layer in network.layers):
        raise ValueError(
            "Weights are trained in float32 at least: small steps would be lost. Use the dtype "
            "policy 'mixed_bfloat16' or 'mixed_float16'. Received: a model whose weights are in "
            "16 bits"
        )
    return network


def outside(
    network: keras.Model,
    given: keras.Model | Callable[[], keras.Model],
    strategy: tf.distribute.Strategy,
) -> keras.Model:
    """The trained model outside the strategy: the one that was given, or a copy of the network."""
    if isinstance(given, keras.Model):
        if given is not network:
            given.set_weights(network.get_weights())
            if hasattr(network, "class_names"):
                given.class_names = network.class_names
        return given
    is_default = strategy is tf.distribute.get_strategy()  # outside of every scope
    return network if is_default else _copy(network)


def _copy(model: keras.Model) -> keras.Model:
    copy = model.__class__.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


@contextlib.contextmanager
def _policy(precision: str | None) -> Iterator[None]:
    """Keras's global dtype policy for a while."""
    before = keras.config.dtype_policy()
    if precision is not None:
        keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
