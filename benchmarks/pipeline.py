"""Images per second of the input pipeline, beside decoding alone and beside what a step consumes.

    python benchmarks/pipeline.py                                  # pictures that it makes
    python benchmarks/pipeline.py --data folder:PATH --size 224    # your own
    python benchmarks/pipeline.py --rounds 20 --json > figures.json

Two tasks, both from files that are read and decoded every time; nothing is cached but by the
operating system, for every contender alike:

    cifar      JPEGs of 32 x 32, moved by up to 4 pixels and mirrored (pad-crop, flip)
    crops      JPEGs of 224 x 224, of which random parts are resized to 224 x 224

and of each, in turns:

    bare       `tf.io.read_file` and `tf.io.decode_jpeg` in a map with `tf.data.AUTOTUNE`, as
               TensorFlow's guides have it, and nothing else: the pictures are thrown away
    tuned      the same with this package's settings, which do for it what they do for us: so many
               files at once, and no measuring of what each takes
    pipeline   `keras_resnet.data.batches`: shuffled, decoded to Pillow's bytes, augmented,
               preprocessed, float32, in batches of 128; the first epoch

Beside them runs the training step of a ResNet-20, batch 128, float32, on one batch that lies in
memory: what the pipeline has to feed. Its aim is three times as many images as that, and at most
1.3 times the time of bare decoding; beside the tuned one it stands to show what is left to gain.

Every round takes each contender once, in an order that changes, and every ratio is one of times
taken within seconds of each other; printed is the median of all rounds with the quartiles in
brackets. Seconds of the processor are counted as well: on a machine that others use too, they say
more than the clock. Within a round, the clock runs from a contender's second batch on, once its
graph is built and its threads are busy.

The pictures are noise whose amplitudes fall with the frequency as those of photographs do (f^-1.2
in the brightness, Torralba and Oliva 2003; f^-1.6 in the colors), saved by Pillow with quality 90:
28 kB at 224 x 224. The time of decoding a JPEG hangs on its bytes more than on its pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

BATCH = 128
PICTURES = 256  # different ones; the files of a task are copies of them


@dataclasses.dataclass(frozen=True)
class Task:
    """Files, and what is done to them."""

    name: str
    size: int
    files: int
    steps: tuple[str, ...]


TASKS = (
    Task("cifar", size=32, files=12_800, steps=("pad-crop", "flip")),
    Task("crops", size=224, files=1_536, steps=("random-resized-crop",)),
)


@dataclasses.dataclass(frozen=True)
class Speed:
    """What one contender did in one round.

    Attributes:
        images: counted.
        seconds: by the clock.
        busy: seconds of the processor, of all threads.
    """

    images: int
    seconds: float
    busy: float


def picture(size: int, rng: np.random.Generator) -> np.ndarray:
    """Something that compresses like a photograph: uint8 `(size, size, 3)`."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1 / size

    def noise(exponent: float) -> np.ndarray:
        spectrum = np.fft.rfft2(rng.normal(size=(size, size))) / frequency**exponent
        values = np.fft.irfft2(spectrum, (size, size))
        return values / values.std()

    brightness = 60 * noise(1.2)
    channels = [120 + brightness + 20 * noise(1.6) for _ in range(3)]
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def write_pictures(root: Path, task: Task) -> None:
    """Class directories of JPEGs, a tenth of which are for testing."""
    from PIL import Image

    rng = np.random.default_rng(0)
    original = root / "original.jpg"
    contents = []
    for _ in range(min(PICTURES, task.files)):
        Image.fromarray(picture(task.size, rng)).save(original, quality=90)
        contents.append(original.read_bytes())
    original.unlink()
    for number in range(task.files):
        directory = root / "train" / "ab"[number % 2]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number:06}.jpg").write_bytes(contents[number % len(contents)])
    for name in "ab":
        (root / "test" / name).mkdir(parents=True)
        (root / "test" / name / "0.jpg").write_bytes(contents[0])


def timed(batches: Iterator[object], batch: int) -> Speed:
    """How fast batches come, after the first."""
    next(batches)
    started, used = time.perf_counter(), processor_seconds()
    count = sum(1 for _ in batches)
    return Speed(count * batch, time.perf_counter() - started, processor_seconds() - used)


def processor_seconds() -> float:
    """Of this process, in all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def bare_decoding(paths: list[str], is_tuned: bool) -> Callable[[], Speed]:
    """Reading and decoding alone."""
    import tensorflow as tf

    from keras_resnet.data.splits import EXAMPLES_AT_ONCE

    at_once = EXAMPLES_AT_ONCE if is_tuned else tf.data.AUTOTUNE
    options = tf.data.Options()
    options.autotune.enabled = not is_tuned

    def decode(path: tf.Tensor) -> tf.Tensor:
        # The height stands for the picture, so that none is copied into a batch.
        return tf.shape(tf.io.decode_jpeg(tf.io.read_file(path), channels=3))[0]

    def run() -> Speed:
        files = tf.data.Dataset.from_tensor_slices(paths).map(decode, at_once)
        ready = files.batch(BATCH, drop_remainder=True).prefetch(2)
        return timed(iter(ready.with_options(options)), BATCH)

    return run


def our_pipeline(name: str, task: Task) -> tuple[Callable[[], Speed], list[str]]:
    """The pipeline over a folder's training images, and their paths."""
    from keras_resnet import Preprocessing, data

    split = data.load(name, cache="none").train
    shape = (task.size, task.size, 3)
    epoch = 0

    def run() -> Speed:
        nonlocal epoch
        epoch += 1
        ready = data.batches(
            split,
            BATCH,
            shape,
            Preprocessing(),
            augment=task.steps,
            shuffle=(0, epoch),
            remainder="drop",
        )
        with split.own_errors():
            return timed(iter(ready), BATCH)

    return run, split.paths


def training_step(steps: int) -> Callable[[], Speed]:
    """A ResNet-20 on one batch again and again."""
    import tensorflow as tf

    import keras_resnet
    from keras_resnet.training import Recipe
    from keras_resnet.training.step import Trainer

    recipe = Recipe(epochs=1, batch_size=BATCH, learning_rate=0.01, schedule="constant")
    trainer = Trainer(keras_resnet.ResNet20(), recipe, tf.distribute.get_strategy(), steps + 1)
    trainer.begin_epoch(0)
    rng = np.random.default_rng(0)
    batch = (
        rng.normal(size=(BATCH, 32, 32, 3)).astype(np.float32),
        rng.integers(0, 10, BATCH).astype(np.int32),
    )
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def run() -> Speed:
        def taken() -> Iterator[object]:
            for _ in range(steps + 1):
                yield float(trainer.step(batches)[0])

        return timed(taken(), BATCH)

    return run


def measure(contenders: dict[str, Callable[[], Speed]], rounds: int) -> dict[str, list[Speed]]:
    """All contenders in every round, in an order of its own; the first round does not count."""
    order = random.Random(0)
    speeds: dict[str, list[Speed]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in order.sample(sorted(contenders), len(contenders)):
            speed = contenders[name]()
            if number:
                speeds[name].append(speed)
        print(f"\rround {number} of {rounds} ", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 30 + "\r", end="", file=sys.stderr)
    return speeds


def spread(values: list[float], digits: int) -> str:
    """Median [first quartile, third quartile]."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def report(speeds: dict[str, list[Speed]], tasks: list[Task]) -> None:
    """Rates, and the two ratios that there are aims for."""
    print(f"{'':18}{'images/s':>26}{'processor us/image':>28}")
    for name, of_contender in speeds.items():
        rates = spread([s.images / s.seconds for s in of_contender], 0)
        busy = spread([1e6 * s.busy / s.images for s in of_contender], 0)
        print(f"{name:18}{rates:>26}{busy:>28}")

    def ratios(of: str, to: str, what: Callable[[Speed], float]) -> str:
        pairs = zip(speeds[of], speeds[to], strict=True)
        return spread([what(a) / what(b) for a, b in pairs], 2)

    print()
    for task in tasks:
        ours = f"{task.name} pipeline"
        for other, aim in (("bare", "  (aim: 1.3)"), ("tuned", "")):
            decoding = f"{task.name} {other}"
            clock = ratios(ours, decoding, lambda s: s.seconds / s.images)
            busy = ratios(ours, decoding, lambda s: s.busy / s.images)
            print(f"{ours} / {decoding}, time per image: {clock}; of the processor: {busy}{aim}")
        if "resnet20 step" in speeds and task.size == 32:
            rate = ratios(ours, "resnet20 step", lambda s: s.images / s.seconds)
            print(f"{ours} / resnet20 step, images per second: {rate}  (aim: 3)")


def options_from(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="that count; default 10")
    parser.add_argument(
        "--data", metavar="folder:PATH", help="your own JPEGs instead of both tasks"
    )
    parser.add_argument("--size", type=int, default=224, help="of the network, with --data")
    parser.add_argument(
        "--augment",
        nargs="*",
        default=["random-resized-crop"],
        help="with --data: names of augmentations; default random-resized-crop",
    )
    parser.add_argument("--steps", type=int, default=8, help="of training per round; 0 for none")
    parser.add_argument("--json", action="store_true", help="print every figure of every round")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.steps < 0:
        parser.error("--rounds must be 1 or more, and --steps 0 or more")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measures in turns and prints medians."""
    options = options_from(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    contenders: dict[str, Callable[[], Speed]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        tasks = list(TASKS)
        if options.data:
            tasks = [Task("own", options.size, 0, tuple(options.augment))]
        for task in tasks:
            name = options.data or f"folder:{Path(temporary) / task.name}"
            if not options.data:
                root = Path(temporary) / task.name
                root.mkdir()
                write_pictures(root, task)
            pipeline, paths = our_pipeline(name, task)
            contenders[f"{task.name} bare"] = bare_decoding(paths, is_tuned=False)
            contenders[f"{task.name} tuned"] = bare_decoding(paths, is_tuned=True)
            contenders[f"{task.name} pipeline"] = pipeline
        if options.steps:
            contenders["resnet20 step"] = training_step(options.steps)
        speeds = measure(contenders, options.rounds)
    if options.json:
        figures = {name: [dataclasses.asdict(s) for s in all_] for name, all_ in speeds.items()}
        print(json.dumps(figures))
    else:
        report(speeds, tasks)


if __name__ == "__main__":
    main()
