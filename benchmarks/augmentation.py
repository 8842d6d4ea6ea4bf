"""Augmented images per second on one core, beside torchvision's (`pip install -e '.[parity]'`).

    python benchmarks/augmentation.py [--rounds 20] [--json]

Both start from decoded images in memory: this package from uint8 batches, torchvision from Pillow
images (erasing and mixing: tensors), one by one where it works on single ones. The process keeps
to one core. The two take turns, so that both see the same machine: ratios are medians over the
rounds, with the quartiles in brackets. The images are smooth noise, as pictures are; bytes of pure
noise are slower to choose between.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before the libraries count the cores

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

# torchvision finds its compiled operators only beside one build of torch; none is used here.
_operators = torch.library.Library("torchvision", "DEF")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision.transforms import v2  # noqa: E402

from keras_resnet.data import Augmentation  # noqa: E402

SIZES = {32: 128, 224: 32}  # pixels: images per batch
FILL = (128, 128, 128)

Task = Callable[[], Any]


def smooth_images(count: int, size: int) -> np.ndarray:
    """Noise of few pixels, enlarged."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, size // 8, size // 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in small])


def ours(augmentation: Augmentation, images: np.ndarray) -> Task:
    """A batch from the function that the input pipeline maps."""
    batch = len(images)
    pixels, values = tf.constant(images), tf.constant(images, tf.float32)
    labels = tf.range(batch) % 10

    @tf.function(autograph=False)
    def augment(seed: tf.Tensor) -> tf.Tensor:
        if augmentation.mixes:
            return augmentation.mix(values, labels, 10, seed)
        uniforms = tf.random.stateless_uniform((batch, augmentation.draws), seed)
        return augmentation.apply(pixels, uniforms, FILL)

    numbers = iter(range(2**31))
    return lambda: augment(tf.constant([0, next(numbers)], tf.int64))


def one_by_one(transform: Callable[[Any], Any], images: np.ndarray) -> Task:
    """What a worker of torchvision's does with a batch of Pillow images."""
    pictures = [Image.fromarray(image) for image in images]
    return lambda: [transform(picture) for picture in pictures]


def tensors(images: np.ndarray) -> torch.Tensor:
    """As torch has them: (batch, channels, height, width)."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def erased(images: np.ndarray) -> Task:
    """Random erasing by torchvision, at 25 %."""
    erase, pixels = v2.RandomErasing(0.25, value=128), tensors(images)
    return lambda: [erase(image) for image in pixels]


def mixed(transform: Callable[..., Any], images: np.ndarray) -> Task:
    """Mixing of a batch by torchvision."""
    batch = tensors(images).float(), torch.arange(len(images)) % 10
    return lambda: transform(*batch)


def contenders(size: int) -> dict[str, tuple[Task, Task]]:
    """By what is done: this package's task and torchvision's."""
    images = smooth_images(SIZES[size], size)
    crop = v2.RandomCrop(size, padding=4, fill=FILL)
    flip = v2.RandomHorizontalFlip()
    theirs = {
        "flip": one_by_one(flip, images),
        "pad-crop, flip": one_by_one(lambda image: flip(crop(image)), images),
        "randaugment": one_by_one(v2.RandAugment(fill=FILL), images),
        "trivialaugment": one_by_one(v2.TrivialAugmentWide(fill=FILL), images),
        "erase": erased(images),
        "mixup": mixed(v2.MixUp(num_classes=10), images),
        "cutmix": mixed(v2.CutMix(num_classes=10), images),
    }
    augmentations = {
        "erase": Augmentation(erase=0.25),
        "mixup": Augmentation(mixup=1),
        "cutmix": Augmentation(cutmix=1),
    }
    return {
        name: (
            ours(augmentations.get(name) or Augmentation(steps=tuple(name.split(", "))), images),
            task,
        )
        for name, task in theirs.items()
    }


def seconds(task: Task) -> float:
    """How long one batch takes."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def main() -> None:
    """Measures in turns and prints medians."""
    parser = argparse.ArgumentParser(description="Augmented images per second on one core.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, list[float]]] = {}
    for size, batch in SIZES.items():
        for name, tasks in contenders(size).items():
            for task in tasks:  # compiles, and fills the caches
                task()
            times = [[seconds(task) for task in tasks] for _ in range(options.rounds)]
            rates = {
                who: [batch / pair[i] for pair in times]
                for i, who in enumerate(("keras_resnet", "torchvision"))
            }
            figures[f"{size} x {size}, {name}"] = rates
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{'images per second on one core':30} {'keras_resnet':>13} {'torchvision':>12}  ratio")
    for what, rates in figures.items():
        us, them = rates.values()
        low, middle, high = statistics.quantiles(
            [a / b for a, b in zip(us, them, strict=True)], n=4
        )
        print(
            f"{what:30} {statistics.median(us):13,.0f} {statistics.median(them):12,.0f}  "
            f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        )


if __name__ == "__main__":
    main()
