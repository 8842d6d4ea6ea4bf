"""Trains and evaluates small networks under one strategy and writes what came out.

Run in a process of its own: a second MirroredStrategy in one process aborts the collectives of
synchronized batch normalization, and logical devices cannot be changed once TensorFlow has started.

STRATEGY is "mirrored:N", or "multiworker" in each of the processes that TF_CONFIG names;
of those, the chief writes. PART is one or more of the functions below, in the order of running.

Usage: python strategy_process.py STRATEGY OUT.npz PART ...
"""

import sys

import keras
import numpy as np
import tensorflow as tf

TEST = 25  # images, which neither 2 nor 3 replicas can share evenly
CLASSES = [str(i) for i in range(10)]


def noise(examples):
    """Images of noise: on those the training is least chaotic, for no pixel is saturated."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, 32, 32, 3), np.uint8)
    return images, rng.integers(0, 10, examples)


def train(strategy, build, steps, *changes, batch=12, **options):
    """The first steps of the recipe for the digits, with decay and momentum."""
    from keras_resnet import Preprocessing, data, training

    images, labels = noise(steps * batch + TEST)
    source = data.from_arrays(
        (images[TEST:], labels[TEST:]), (images[:TEST], labels[:TEST]), CLASSES
    )
    recipe = training.get_recipe("digits").replace(
        ["augment=", f"batch_size={batch}", f"rate_batch={batch}", *changes]
    )
    losses = []
    weights = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append(logs["loss"])
            # Before batch normalization's statistics are averaged over the replicas.
            if len(losses) == steps:
                weights.append(np.concatenate([w.ravel() for w in self.model.get_weights()]))

        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    result = training.fit(
        build,
        source,
        recipe,
        strategy=strategy,
        preprocessing=Preprocessing(),
        callbacks=[Record()],
        verbose=False,
        seed=1,
        **options,
    )
    during = result.history[-1]
    outcome = {
        "losses": np.array(losses),
        "weights": weights[0],
        "during": np.array([during["val_loss"], during["val_accuracy"]]),
    }
    return outcome, result.model, source


def small(blocks=(1,), dtype="float64", **options):
    """A residual network that is quick to build, to trace and to train."""
    import keras_resnet

    row = keras_resnet.get_architecture("resnet20")
    row = row.replace(name="small", blocks=blocks, widths=(4, 8)[: len(blocks)])
    return lambda: keras_resnet.create_model(row, dtype=dtype, **options)


def many_steps(strategy):
    """In float64, at the recipe's highest rate from the first step on."""
    return train(strategy, small((1, 1), sync_bn=True), 30, "warmup_epochs=0")[0]


def first_step(strategy):
    # The recipe as it is: its warm-up starts at a small rate. At the highest one the weights of a
    # ResNet-20 differ by 3e-5 after the step, for gradients in float32 are good to 5e-4 only: so
    # much do they change when the same examples come in another order.
    build = small((1, 1), "float32", sync_bn=True)
    return train(strategy, build, 1, batch=48)[0]


def grouped(strategy):
    """A ResNeXt of one block, whose grouped convolution XLA alone can train on a CPU."""
    import keras_resnet

    row = keras_resnet.get_architecture("resnext29_8x64d")
    row = row.replace(name="grouped", blocks=(1,), widths=(8,), cardinality=4, base_width=32)

    def build():
        return keras_resnet.create_model(row, sync_bn=True, dtype="float64")

    return train(strategy, build, 3, "warmup_epochs=0")[0]


def tiny():
    """With a batch normalization whose statistics each replica keeps for itself."""
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, strides=4, dtype="float64")(image)
    x = keras.layers.BatchNormalization(momentum=0.5, dtype="float64")(x)
    x = keras.layers.GlobalAveragePooling2D(dtype="float64")(x)
    return keras.Model(image, keras.layers.Dense(10, dtype="float64")(x))


def own_statistics(strategy):
    """A validation under the strategy, and an evaluation of what came out, without it."""
    from keras_resnet import Preprocessing, training

    outcome, model, source = train(strategy, tiny, 5)
    after = training.evaluate(model, source, preprocessing=Preprocessing())
    return {**outcome, "after": np.array([after.loss, after.accuracy])}


def evaluate(strategy):
    """The same weights on 25 images, in batches too small or too large for all replicas."""
    from keras_resnet import Preprocessing, data, training

    images, labels = noise(TEST)
    source = data.from_arrays((images, labels), (images, labels), CLASSES)
    with strategy.scope():
        model = tiny()
    rng = np.random.default_rng(1)
    for variable in model.weights:
        value = rng.normal(size=variable.shape)
        variable.assign(np.abs(value) if variable.name == "moving_variance" else value)
    outcome = {}
    for batch_size in (32, 16, 4, 1):  # the last batch has 25, 9, 1 and 1 images
        found = training.evaluate(
            model,
            source,
            preprocessing=Preprocessing(),
            batch_size=batch_size,
            strategy=strategy,
        )
        outcome[f"loss{batch_size}"] = np.array(found.loss)
        outcome[f"counts{batch_size}"] = np.array([found.correct, found.examples])
        outcome[f"confusion{batch_size}"] = found.confusion
    return outcome


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


def options(strategy):
    """What else a recipe can ask for, and what comes out at the end."""
    outcome, model, _ = train(
        strategy,
        small(sync_bn=True),
        4,
        *("warmup_epochs=0", "clip=0.5", "ema=0.5", "early_stopping=2", "label_smoothing=0.1"),
        class_weights={"3": 2.0, "5": 0.5},
        precise_bn=True,
    )
    return {**outcome, "weights": flat(model)}


def accumulated(strategy):
    """AdamW, and micro-batches, which are exact without batch statistics."""
    changes = ("warmup_epochs=0", "optimizer=adamw", "learning_rate=0.001", "clip=0.5")
    return train(strategy, small(norm="group"), 4, *changes, accumulate=2)[0]


def frozen(strategy):
    """How many of the weights that were frozen to the end have moved."""
    keras.utils.set_random_seed(1)
    before = small()().get_weights()
    _, model, _ = train(strategy, small(), 4, "frozen=C2", "frozen_epochs=9")
    moved = [
        variable.path
        for variable, start in zip(model.weights, before, strict=True)
        if (variable.numpy() != start).any()
    ]
    return {"moved": np.array(sorted(moved))}


def resumed(strategy):
    """Two trainings with averages of the weights, of which one is interrupted in its middle.

    With several workers, only the others than the chief find that it is time to save the model.
    """
    from keras_resnet import Preprocessing, data, training
    from keras_resnet.training import loop
    from keras_resnet.training.strategies import is_chief

    loop._SAVE_SECONDS = 1e9 if is_chief(strategy) else 0.0
    images, labels = noise(6 * 12 + TEST)
    source = data.from_arrays(
        (images[TEST:], labels[TEST:]), (images[:TEST], labels[:TEST]), CLASSES
    )
    changes = ["augment=", "batch_size=12", "rate_batch=12", "epochs=3", "ema=0.99"]
    recipe = training.get_recipe("digits").replace(changes)

    class Stop(keras.callbacks.Callback):
        taken = 0

        def on_train_batch_end(self, batch, logs=None):
            self.taken += 1
            if self.taken == 10:
                raise KeyboardInterrupt

    def fit(name, **options):
        return training.fit(
            small(norm_momentum=0.99),
            source,
            recipe,
            strategy,
            f"{sys.argv[2]}.{name}",
            preprocessing=Preprocessing(),
            checkpoint_every=4,
            verbose=False,
            **options,
        )

    whole = fit("whole")
    try:
        fit("torn", callbacks=[Stop()])
    except KeyboardInterrupt:
        torn = fit("torn", resume=True)
    return {"whole": flat(whole.model), "torn": flat(torn.model)}


PARTS = {
    part.__name__: part
    for part in (
        many_steps,
        first_step,
        grouped,
        own_statistics,
        evaluate,
        options,
        accumulated,
        frozen,
        resumed,
    )
}


def outcome(strategy, parts):
    """What the parts give, named PART/KEY."""
    return {
        f"{part}/{key}": value for part in parts for key, value in PARTS[part](strategy).items()
    }


def main(name, out, *parts):
    devices = int(name.partition(":")[2] or 1)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
    from keras_resnet import training
    from keras_resnet.training.strategies import is_chief

    strategy = training.resolve_strategy(name)
    arrays = outcome(strategy, parts)
    if is_chief(strategy):
        np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
