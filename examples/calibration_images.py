"""Makes calibration images from what a trained network remembers of its training images.

    python examples/calibration_images.py resnet20 --weights cifar10 --out images.npz
    python examples/calibration_images.py runs/resnet8 runs/resnet20 --out for-both.npz

For an int8 export where no image may leave its owner. Batch normalization keeps the mean and the
variance of every channel that the training images had at its place; images of noise are changed by
gradient descent until a batch of them has the same (Cai et al. 2020, "ZeroQ", section 3.1), and
the network is sure of a class for each (Yin et al. 2020, "DeepInversion", section 3.1): without
that the logits stay small, and the file cuts off those of real images. The noise starts with the
spectrum of photographs, so that few steps are enough. The images show nothing to a person, and
nothing to another network: made from several networks of one input size at once, they serve each
of them. `--picture` draws them.

The file holds one array `images`, uint8 (n, height, width, 3), that `keras-resnet export
--calibration images.npz` takes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from keras_resnet.quiet import import_tensorflow

import_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from PIL import Image  # noqa: E402

import keras_resnet  # noqa: E402
from keras_resnet.cli.common import MODEL_HELP, WEIGHTS_HELP, load, positive  # noqa: E402
from keras_resnet.export.source import SourceNetwork  # noqa: E402
from keras_resnet.files import atomic_file  # noqa: E402

RATE = 4.0  # of Adam, in levels of 255: about what a step moves a pixel by
DOUBT = 0.05  # what a unit of cross-entropy counts beside the statistics


def noise(count: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Images float32 (n, height, width, channels) whose amplitudes fall as 1 / frequency."""
    height, width, channels = shape
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1 / max(height, width)

    def fields(members: int) -> np.ndarray:
        white = random.standard_normal((count, members, height, width))
        colored = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=(height, width))
        return colored / colored.std()

    # Colors of a photograph go together: most of an image is grey.
    pixels = 120 + 50 * fields(1) + 17 * fields(channels)
    return pixels.transpose(0, 2, 3, 1).clip(0, 255).astype(np.float32)


class Remembered:
    """How far a batch of images is from what a classifier was trained on.

    Raises:
        ValueError: if it has no batch normalization, and so remembers no statistics.
    """

    def __init__(self, model: keras.Model):
        network = SourceNetwork(model, keras_resnet.Preprocessing.from_model(model))
        norms = [layer for layer in network.logits.layers if hasattr(layer, "moving_variance")]
        if not norms:
            raise ValueError(
                "Only batch normalization remembers the statistics of training images. Received: "
                f"{model.name}, which has none"
            )
        self.shape = network.shape
        self._preprocessing = network.preprocessing
        outputs = [layer.input for layer in norms]
        self._inside = keras.Model(network.logits.inputs, [*outputs, network.logits.output])
        self._norms = [
            (
                tf.constant(layer.moving_mean.numpy()),
                tf.constant(np.sqrt(layer.moving_variance.numpy() + layer.epsilon)),
            )
            for layer in norms
        ]

    def distance(self, pixels: tf.Tensor) -> tf.Tensor:
        """Of means and deviations in units of the deviation: every channel counts the same."""
        *values, logits = self._inside(self._preprocessing(pixels), training=False)
        distance = 0.0
        for value, (mean, deviation) in zip(values, self._norms, strict=True):
            found, variance = tf.nn.moments(tf.cast(value, tf.float32), [0, 1, 2])
            distance += tf.reduce_mean(((found - mean) / deviation) ** 2)
            distance += tf.reduce_mean((tf.sqrt(variance + 1e-5) / deviation - 1) ** 2)
        labels = tf.range(logits.shape[0]) % logits.shape[1]
        doubt = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return distance / len(self._norms) + DOUBT * tf.reduce_mean(doubt)


def images_like_training(
    models: Sequence[keras.Model], count: int, steps: int, seed: int = 0
) -> np.ndarray:
    """Images uint8 (n, height, width, channels) with the statistics that networks remember.

    Raises:
        ValueError: if one remembers none, or they have no fixed size that is the same for all.
    """
    networks = [Remembered(model) for model in models]
    shapes = {network.shape for network in networks}
    if len(shapes) > 1:
        raise ValueError(f"Networks must take images of the same size. Received: {shapes}")
    pixels = tf.Variable(noise(count, *shapes, seed))
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
    optimizer = keras.optimizers.Adam(rate)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            distance = sum(network.distance(pixels) for network in networks) / len(networks)
        optimizer.apply_gradients([(tape.gradient(distance, pixels), pixels)])
        pixels.assign(tf.clip_by_value(pixels, 0.0, 255.0))
        return distance

    progress = keras.utils.Progbar(steps, unit_name="step", verbose=1)
    for number in range(1, steps + 1):
        progress.update(number, [("distance", float(step()))])
    return pixels.numpy().round().astype(np.uint8)


def sheet(images: np.ndarray) -> Image.Image:
    """All images in rows of eight, without the last incomplete row."""
    count, height, width, channels = images.shape
    rows = images[: count // 8 * 8].reshape(-1, 8, height, width, channels)
    joined = rows.transpose(0, 2, 1, 3, 4).reshape(-1, 8 * width, channels)
    return Image.fromarray(joined).resize((24 * width, joined.shape[0] * 3), Image.Resampling.BOX)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the images and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="RUN", help=MODEL_HELP)
    parser.add_argument("--weights", metavar="SOURCE", help=WEIGHTS_HELP)
    parser.add_argument("--out", required=True, type=Path, metavar="NPZ", help="file to write")
    parser.add_argument("--picture", type=Path, help="file to draw them into, e.g. a .png")
    parser.add_argument("--count", type=positive, default=64, help="images to make; default: 64")
    parser.add_argument(
        "--steps", type=positive, default=100, help="of gradient descent; default: 100"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args(arguments)
    try:
        models = [load(name, options.weights)[0] for name in options.models]
        images = images_like_training(models, options.count, options.steps, options.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with atomic_file(options.out) as temporary:
        np.savez_compressed(temporary, images=images)
    if options.picture:
        with atomic_file(options.picture) as temporary:
            sheet(images).save(temporary)


if __name__ == "__main__":
    main()
