"""Trains a small network on the digits, with dropout and augmentation; made to be killed."""

import os

import keras
import tensorflow as tf

import keras_resnet
from keras_resnet import training


def train(
    run_dir,
    every,
    changes=(),
    *,
    widths=(4, 8, 16),
    seed=0,
    verbose=False,
    stop_after=None,
    spoil_at=None,
    spoil="logits/kernel",
    callbacks=(),
    **options,
):
    """Goes on with the run, or starts it; one byte per step is appended to `run_dir`.steps.

    So a test can count the steps of a process that never got to say how many there were.

    Args:
        run_dir: where the run is.
        every: steps between two checkpoints.
        changes: to the recipe.
        widths: of the network.
        seed: of the training.
        verbose: whether it shows its progress.
        stop_after: stop after so many steps.
        spoil_at: the step of the whole training, counted from 1, before which a weight becomes no
            number.
        spoil: the weight, as `layer/attribute`.
        callbacks: more of them.
        options: of `training.fit`.
    """
    row = keras_resnet.get_architecture("resnet8").replace(
        name="tiny", blocks=(1, 1, 1), widths=widths, dropout=0.2, block_dropout=0.1
    )
    counter = os.open(f"{run_dir}.steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    class Watch(keras.callbacks.Callback):
        taken = 0

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_begin(self, batch, logs=None):
            if self.epoch * 22 + batch + 1 == spoil_at:
                layer, name = spoil.split("/")
                weight = getattr(self.model.get_layer(layer), name)
                weight.assign(float("nan") * weight)

        def on_train_batch_end(self, batch, logs=None):
            os.write(counter, b".")
            self.taken += 1
            if self.taken == stop_after:
                raise KeyboardInterrupt

    try:
        return training.fit(
            lambda: keras_resnet.create_model(row),
            "digits",
            training.get_recipe("digits").replace(["epochs=6", "ema=0.99", *changes]),
            run_dir=run_dir,
            callbacks=[Watch(), *callbacks],
            checkpoint_every=every,
            seed=seed,
            verbose=verbose,
            **({"resume": True} | options),
        )
    except KeyboardInterrupt:
        if stop_after is None:
            raise
        return None
    finally:
        os.close(counter)


def train_to_be_killed(*arguments):
    """With deterministic operations, for a whole process."""
    tf.config.experimental.enable_op_determinism()
    train(*arguments)
