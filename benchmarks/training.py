"""Training speed and memory: this package's loop, stock Keras, and PyTorch, taking turns.

    python benchmarks/training.py                       # ResNet-20, 32 x 32, batch 128
    python benchmarks/training.py --network resnet50    # ResNet-50, 224 x 224, batch 16
    python benchmarks/training.py --contenders ours keras --rounds 40 --json > figures.json
    python benchmarks/training.py --where               # what a step of ours spends its time in

Every contender is a process of its own, which builds the same network, compiles, takes a first
round that does not count, and then waits. A round asks each of them in turn, in an order that
changes from round to round, for the same number of training steps; the others sleep meanwhile. So
all of them see the same machine, also when it is shared, and a ratio is one of times taken within
seconds of each other. What is printed is the median of the ratios of all rounds, with the quartiles
in brackets, never the ratio of two medians.

What a round contains, for every contender: an epoch over the images of `--steps` batches, which lie
in memory as one array, in a new order; forward, cross-entropy and its gradient; SGD with momentum
0.9 and weight decay 1e-4; the loss and the number of images named right, read at the end. The
pixels are random numbers and the labels too: a step costs the same whatever they show. Not in it:
imports, building, compiling, evaluation. PyTorch's and Keras's arrays hold float32, ready for the
network; this package's hold the uint8 pixels that its sources have, and its pipeline converts them
within the round.

    ours            keras_resnet.training.fit, float32           ours-bf16           mixed_bfloat16
    keras           keras.Model.fit on the same network with     keras-bf16          mixed_bfloat16
                    Keras's own BatchNormalization
    torch           PyTorch, eager, float32                      torch-bf16          autocast
    torch-compile   the same under torch.compile                 torch-compile-bf16  autocast

Peak memory is the largest resident set of the contender's process, libraries included.

Other programs on the same cores slow everyone down, but not alike: PyTorch's threads wait for each
other in a loop, and TensorFlow's do not. Compare with PyTorch on a machine that is otherwise idle;
the load is printed when it is not. PyTorch comes with `pip install '.[parity]'`; torch.compile
needs a C++ compiler besides.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4


@dataclasses.dataclass(frozen=True)
class Task:
    """A network and its input."""

    network: str
    size: int
    classes: int
    batch: int
    steps: int  # per round, unless asked otherwise


TASKS = {
    task.network: task
    for task in (
        Task("resnet20", size=32, classes=10, batch=128, steps=8),
        Task("resnet50", size=224, classes=1000, batch=16, steps=2),
    )
}
DEFAULT = ("ours", "ours-bf16", "keras", "torch", "torch-compile", "torch-bf16")


def images_and_labels(task: Task, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Made up: uint8 `(n, size, size, 3)` and int32 `(n,)`."""
    rng = np.random.default_rng(0)
    count = task.batch * steps
    pixels = rng.integers(0, 256, (count, task.size, task.size, 3), np.uint8)
    return pixels, rng.integers(0, task.classes, count).astype(np.int32)


# The contenders. Each trains for ever, asks `rounds` for leave before every epoch and tells it how
# many seconds the epoch took.


class Rounds:
    """A contender's side of the conversation: one line in starts a round, one line out ends it."""

    def __init__(self) -> None:
        # Libraries print what they like; it must not come in between.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def begin(self) -> None:
        """Returns when the next round is to begin; ends the process when there is none."""
        if not sys.stdin.readline():
            os._exit(0)
        self._started = time.perf_counter()

    def end(self, seconds: float | None = None) -> None:
        """Reports a round: the time since it began, unless one's own watch knows better."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = {
            "seconds": time.perf_counter() - self._started if seconds is None else seconds,
            "peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
        }
        print(json.dumps(report), file=self._answers, flush=True)


def ours(task: Task, steps: int, precision: str, rounds: Rounds) -> None:
    """The package's public face; the seconds are those of its own log."""
    import keras

    listener = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: rounds.begin(),
        # Of the steps alone: without the evaluation that follows them.
        on_epoch_end=lambda _, logs: rounds.end(task.batch * steps / logs["images_per_second"]),
    )
    fit_ours(task, steps, precision, epochs=1_000_000, callbacks=[listener])


def fit_ours(task: Task, steps: int, precision: str, epochs: int, **options: Any) -> None:
    """`keras_resnet.training.fit` of the task."""
    import keras_resnet
    from keras_resnet import data, training

    pixels, labels = images_and_labels(task, steps)
    names = [str(number) for number in range(task.classes)]
    source = data.from_arrays((pixels, labels), (pixels[:8], labels[:8]), names)
    recipe = training.Recipe(
        epochs=epochs,
        batch_size=task.batch,
        learning_rate=RATE,
        schedule="constant",
        momentum=MOMENTUM,
        weight_decay=DECAY,
    )
    training.fit(
        lambda: keras_resnet.create_model(task.network),
        source,
        recipe,
        strategy="default",
        precision=precision,
        verbose=False,
        **options,
    )


def stock_keras(task: Task, steps: int, precision: str, rounds: Rounds) -> None:
    """`keras.Model.fit`, on the same network with Keras's own batch normalization."""
    import keras

    import keras_resnet
    from keras_resnet import Preprocessing

    def stock(layer: keras.layers.Layer) -> keras.layers.Layer:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        kind = keras.layers.BatchNormalization if is_norm else type(layer)
        return kind.from_config(layer.get_config())

    keras.config.set_dtype_policy(precision)
    model = keras.models.clone_model(keras_resnet.create_model(task.network), clone_function=stock)
    model.compile(
        keras.optimizers.SGD(RATE, momentum=MOMENTUM, weight_decay=DECAY),
        keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
    )
    pixels, labels = images_and_labels(task, steps)
    model.fit(
        Preprocessing.from_model(keras_resnet.create_model(task.network))(pixels),
        labels,
        batch_size=task.batch,
        epochs=1_000_000,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda *_: rounds.begin(), on_epoch_end=lambda *_: rounds.end()
            )
        ],
        verbose=0,
    )


def pytorch(task: Task, steps: int, precision: str, rounds: Rounds, compiled: bool) -> None:
    """A plain loop of PyTorch's."""
    import torch

    torch.manual_seed(0)
    model: Any = torch_network(task)
    expected = count_of(task.network)
    received = sum(parameter.numel() for parameter in model.parameters())
    if received != expected:
        raise ValueError(f"The networks differ: {received} parameters in PyTorch, not {expected}.")
    # The layout that PyTorch recommends on a CPU. Eager, in float32, the other one differs by less
    # than 5 % either way; compiled, this one is the faster by 10 %.
    model = model.to(memory_format=torch.channels_last).train()
    step_model = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    pixels, labels = images_and_labels(task, steps)
    all_images = torch.from_numpy(pixels / np.float32(128) - 1).permute(0, 3, 1, 2)
    all_labels = torch.from_numpy(labels).long()
    narrow = precision != "float32"
    while True:
        rounds.begin()
        order = torch.randperm(len(all_labels))
        total, right = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for chosen in order.split(task.batch):
            images, wanted = all_images[chosen], all_labels[chosen]
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                scores = step_model(images)
            loss = torch.nn.functional.cross_entropy(scores.float(), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
            right += (scores.detach().argmax(1) == wanted).sum()
        total.item(), right.item()
        rounds.end()


def count_of(network: str) -> int:
    """Trainable parameters."""
    from keras_resnet.architecture import get_counts

    return get_counts(network).parameters


def torch_network(task: Task) -> Any:
    """The same network in PyTorch: He et al. 2015, sections 3 and 4.2."""
    import torch
    from torch import nn
    from torch.nn import functional

    def conv_norm(inner: int, outer: int, size: int, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(inner, outer, size, stride, size // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outer))

    class ZeroPad(nn.Module):
        def __init__(self, added: int, stride: int):
            super().__init__()
            self.added, self.stride = added, stride

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            half = self.added // 2
            x = x[:, :, :: self.stride, :: self.stride]
            return functional.pad(x, (0, 0, 0, 0, half, self.added - half))

    class Block(nn.Module):
        def __init__(self, branch: nn.Module, shortcut: nn.Module):
            super().__init__()
            self.branch, self.shortcut = branch, shortcut

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.relu(self.branch(x) + self.shortcut(x))

    def stages(channels: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for j in range(count):
                stride = 2 if i and not j else 1
                layers.append(block(channels, width, stride))
                channels = width * expansion
        return layers

    def basic(channels: int, width: int, stride: int) -> Block:
        first, second = conv_norm(channels, width, 3, stride), conv_norm(width, width, 3)
        changes = stride > 1 or channels != width
        shortcut = ZeroPad(width - channels, stride) if changes else nn.Identity()
        return Block(nn.Sequential(first, nn.ReLU(), second), shortcut)

    def bottleneck(channels: int, width: int, stride: int) -> Block:
        branch = nn.Sequential(
            *(conv_norm(channels, width, 1, stride), nn.ReLU()),
            *(conv_norm(width, width, 3), nn.ReLU()),
            conv_norm(width, width * 4, 1),
        )
        changes = stride > 1 or channels != width * 4
        return Block(
            branch, conv_norm(channels, width * 4, 1, stride) if changes else nn.Identity()
        )

    if task.network == "resnet20":
        block: Callable[[int, int, int], Block] = basic
        expansion, last = 1, 64
        stem = [conv_norm(3, 16, 3), nn.ReLU()]
        body = stages(16, (16, 32, 64), (3, 3, 3))
    else:
        block, expansion, last = bottleneck, 4, 2048
        stem = [conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        body = stages(64, (64, 128, 256, 512), (3, 4, 6, 3))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, task.classes)]
    return nn.Sequential(*stem, *body, *head)


CONTENDERS: dict[str, Callable[[Task, int, Rounds], None]] = {
    "ours": lambda task, steps, rounds: ours(task, steps, "float32", rounds),
    "ours-bf16": lambda task, steps, rounds: ours(task, steps, "mixed_bfloat16", rounds),
    "keras": lambda task, steps, rounds: stock_keras(task, steps, "float32", rounds),
    "keras-bf16": lambda task, steps, rounds: stock_keras(task, steps, "mixed_bfloat16", rounds),
    "torch": lambda task, steps, rounds: pytorch(task, steps, "float32", rounds, False),
    "torch-bf16": lambda task, steps, rounds: pytorch(task, steps, "bfloat16", rounds, False),
    "torch-compile": lambda task, steps, rounds: pytorch(task, steps, "float32", rounds, True),
    "torch-compile-bf16": lambda task, steps, rounds: pytorch(
        task, steps, "bfloat16", rounds, True
    ),
}


# Where the time goes


def where(task: Task, steps: int) -> list[str]:
    """The kinds of operations of our step, float32, with their shares of the time of all.

    Of a second epoch, as TensorFlow's profiler saw it; under a thousandth, they are left out.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as run_dir:
        profile = (steps + 1, 2 * steps - 1)
        fit_ours(task, steps, "float32", epochs=2, run_dir=run_dir, profile=profile)
        (path,) = pathlib.Path(run_dir).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    spent: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            # Operations are called name:kind; what runs them, "A::B" or "A: B".
            called = re.fullmatch(r"[^: ]+:([^: ]+)", plane.event_metadata[event.metadata_id].name)
            if called:
                spent[called[1]] += event.duration_ps
    whole = spent.total()
    return [f"{kind:36} {t / whole:6.1%}" for kind, t in spent.most_common() if t > whole / 1000]


# The one who asks


class Contender:
    """A process that trains on request."""

    def __init__(self, name: str, task: Task, steps: int):
        self.name = name
        self.peak_mib = 0.0
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open while the process lives
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, "--network", task.network,
             "--steps", str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
            text=True,
        )  # fmt: skip

    def round(self) -> float:
        """Seconds of a round.

        Raises:
            RuntimeError: if the process has died, with the end of what it said.
        """
        with contextlib.suppress(BrokenPipeError):  # the missing answer says as much
            print("go", file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline() if self._process.stdout else ""
        if not answer:
            self._errors.seek(0)
            raise RuntimeError(f"{self.name} has died:\n{self._errors.read()[-2000:]}")
        report = json.loads(answer)
        self.peak_mib = report["peak_mib"]
        return report["seconds"]

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def alternate(
    contenders: list[Contender], rounds: int, told: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds of every round, by contender."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        told(f"{contender.name} builds, compiles and warms up")
        contender.round()
    shuffled = random.Random(0)
    for number in range(rounds):
        told(f"round {number + 1} of {rounds}")
        for contender in shuffled.sample(contenders, len(contenders)):
            seconds[contender.name].append(contender.round())
    return seconds


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def table(seconds: dict[str, list[float]], peaks: dict[str, float], images: int) -> Iterator[str]:
    """Lines: speed and memory of each, and how much faster ours are, round by round."""
    mine = [name for name in seconds if name.startswith("ours")]
    heads = [f"{name} is faster by" for name in mine]
    yield "".join(
        [f"{'':20}", f"{'images/s':>22}", f"{'peak MiB':>10}", *(f"{head:>26}" for head in heads)]
    )
    for name, times in seconds.items():
        low, median, high = quartiles([images / t for t in times])
        cells = [f"{name:20}", f"{median:8.1f} [{low:.1f}, {high:.1f}]".rjust(22)]
        cells.append(f"{peaks[name]:10.0f}")
        for own in mine:
            ratios = [theirs / ours_ for theirs, ours_ in zip(times, seconds[own], strict=True)]
            low, median, high = quartiles(ratios)
            cells.append(f"{median:.2f} [{low:.2f}, {high:.2f}]".rjust(26))
        yield "".join(cells)


def main() -> None:
    """Measures in turns and prints medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=TASKS, default="resnet20", help="default: resnet20")
    parser.add_argument("--rounds", type=int, default=20, help="default: 20")
    parser.add_argument("--steps", type=int, help="per round; default: 8, or 2 for resnet50")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=DEFAULT, metavar="NAME",
        help=f"of {', '.join(CONTENDERS)}; default: {' '.join(DEFAULT)}",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the seconds of every round instead")
    parser.add_argument("--where", action="store_true", help="profile our step instead")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1 or (options.steps is not None and options.steps < 1):
        parser.error("--rounds and --steps must be positive")
    task = TASKS[options.network]
    steps = options.steps or task.steps
    if options.worker:
        CONTENDERS[options.worker](task, steps, Rounds())
        return

    if options.where:
        print("\n".join(where(task, steps)))
        return

    def told(what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{what:60}\r", end="", file=sys.stderr, flush=True)

    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"Other programs are running: the load is {load:.1f}.", file=sys.stderr)
    contenders: list[Contender] = []
    try:
        for name in dict.fromkeys(options.contenders):
            contenders.append(Contender(name, task, steps))
        seconds = alternate(contenders, options.rounds, told)
    except RuntimeError as error:
        sys.exit(f"\n{error}")
    finally:
        for contender in contenders:
            contender.stop()
    told("")
    peaks = {contender.name: contender.peak_mib for contender in contenders}
    if options.json:
        asked = dataclasses.asdict(dataclasses.replace(task, steps=steps))
        print(json.dumps({"task": asked, "seconds": seconds, "peak_mib": peaks}))
        return
    print(
        f"{task.network}, {task.size} x {task.size}, batch {task.batch}: {options.rounds} rounds "
        f"of {steps} steps, median [quartiles]; made-up images"
    )
    for line in table(seconds, peaks, task.batch * steps):
        print(line)


if __name__ == "__main__":
    main()
