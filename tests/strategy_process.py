"""Trains a small network under one strategy and writes what came out; run in a process of its own.

A second MirroredStrategy in the same process aborts the collectives of synchronized batch
normalization, and logical devices cannot be changed once TensorFlow has started.

STRATEGY is "default", "mirrored:N", or "multiworker" in each of the processes that TF_CONFIG names.

NETWORK is "resnet20" or "grouped", a ResNeXt of one block per stage.

FIELD=VALUE changes the recipe, which is "digits" without augmentation.

Usage: python strategy_process.py NETWORK STRATEGY DTYPE STEPS OUT.npz [FIELD=VALUE ...]
"""

import dataclasses
import sys

import keras
import numpy as np
import tensorflow as tf


def architecture_of(network: str):
    import keras_resnet

    if network == "resnet20":
        return keras_resnet.get_architecture(network)
    row = keras_resnet.get_architecture("resnext29_8x64d")
    return row.replace(
        name="grouped", blocks=(1, 1, 1), widths=(8, 16, 32), cardinality=4, base_width=32
    )


def main(network: str, strategy: str, dtype: str, steps: int, out: str, *changes: str) -> None:
    devices = int(strategy.partition(":")[2] or 1)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
    import keras_resnet
    from keras_resnet import data, training

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps * 64 + 77, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, len(images))
    # The test split has an odd number of images, which two replicas cannot share evenly.
    source = data.from_arrays(
        (images[77:], labels[77:]), (images[:77], labels[:77]), [str(i) for i in range(10)]
    )
    recipe = training.get_recipe("digits").replace(["augment=", *changes])

    losses: list[float] = []
    weights: list[np.ndarray] = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append(logs["loss"])
            if len(losses) == steps:
                weights.append(np.concatenate([w.ravel() for w in self.model.get_weights()]))

        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = len(losses) >= steps

    result = training.fit(
        lambda: keras_resnet.create_model(architecture_of(network), sync_bn=True, dtype=dtype),
        source,
        recipe,
        strategy=strategy,
        callbacks=[Record()],
        verbose=False,
        seed=1,
    )
    after = training.evaluate(result.model, source)
    np.savez(
        out,
        losses=np.array(losses[:steps]),
        weights=weights[0],
        during=np.array([result.history[-1]["val_loss"], result.history[-1]["val_accuracy"]]),
        after=np.array(dataclasses.astuple(after)),
    )


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), *sys.argv[5:])
