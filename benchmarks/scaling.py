"""What a strategy costs per step: mirrored and multi-worker beside one device, same global batch.

    python benchmarks/scaling.py                                  # ResNet-20, global batch 128
    python benchmarks/scaling.py --batch 32 --rounds 30 --json > figures.json

One device, N logical CPU devices in one process (`mirrored:N`) and N processes over the loopback
interface (`multiworker:N`) have the same processors to share and the same examples to compute, so
what they take longer is what the strategy costs: the replicas' own overhead, the all-reduce of the
gradients, the waiting for each other. A GPU cluster adds the wires; docs/scaling.md goes on from
here.

Each contender is one process, or N, that compiles the step of keras_resnet.training, takes a few
that do not count, and then waits to be asked. A round asks each in turn, in a new order each time,
for the same number of steps, while the others sleep; ratios are taken within a round. What is
printed is the median over the rounds, with the quartiles in brackets.

`all-reduce` is the sum of tensors in the sizes of the network's gradients over the replicas, alone;
`collectives` counts the operations in which a replica takes part per step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

CONTENDERS = ("default", "mirrored:2", "mirrored:4", "multiworker:2")
WARM_UP = 3


# A contender: it says "ready" and how many collectives a step has, and then answers questions


def serve(name: str, network: str, batch: int) -> None:
    """Answers `step N` and `reduce N` on the standard input with the seconds that N took."""
    import keras
    import numpy as np
    import tensorflow as tf

    replicas = int(name.partition(":")[2] or 1)
    if name.startswith("mirrored"):
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * replicas,
        )
    import keras_resnet
    from keras_resnet import training
    from keras_resnet.training.step import Trainer, share_of_worker

    strategy = training.resolve_strategy(name.partition(":")[0] if "worker" in name else name)
    keras.utils.set_random_seed(0)
    recipe = training.get_recipe("digits").replace([f"batch_size={batch}", "augment="])
    with strategy.scope():
        model = keras_resnet.create_model(network, classes=10)
        trainer = Trainer(model, recipe, strategy, 100)
    shape = model.input_shape[1:]

    def batches(share: tuple[int, int]) -> tf.data.Dataset:
        rng = np.random.default_rng(share[0])
        rows = batch // share[1]
        images = rng.uniform(-1, 1, (rows, *shape)).astype(np.float32)
        labels = rng.integers(0, 10, rows).astype(np.int32)
        return tf.data.Dataset.from_tensors((images, labels)).repeat()

    examples = share_of_worker(strategy, batch, batches)
    gradients = [tf.ones(v.shape) for v in model.trainable_variables]

    @tf.function
    def reduce() -> Any:
        def on_replica() -> Any:
            context = tf.distribute.get_replica_context()
            sums = context.all_reduce("SUM", [tf.identity(g) for g in gradients])
            return tf.add_n([tf.reduce_sum(s) for s in sums])

        return strategy.experimental_local_results(strategy.run(on_replica))[0]

    def step() -> Any:
        return trainer.step(examples)[0]

    questions = {"step": step, "reduce": reduce}
    for question in questions.values():
        for _ in range(WARM_UP):
            float(question())
    graph = trainer.step.get_concrete_function(examples).graph
    collectives = sum(op.type.startswith("Collective") for op in graph.get_operations())
    print("ready", collectives // (replicas if name.startswith("mirrored") else 1))
    sys.stdout.flush()
    for line in sys.stdin:
        question, count = line.split()
        started = time.perf_counter()
        for _ in range(int(count)):
            answer = questions[question]()
        float(answer)
        print(time.perf_counter() - started, flush=True)


# The other side


class Contender:
    """The processes of one contender."""

    def __init__(self, name: str, network: str, batch: int):
        self.name = name
        kind, _, count = name.partition(":")
        workers = int(count) if kind == "multiworker" else 1
        ports = free_ports(workers)
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._processes = []
        command = [sys.executable, __file__, "--serve", name, "--network", network]
        command += ["--batch", str(batch)]
        for worker in range(workers):
            environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
            environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
            if workers > 1:
                addresses = [f"127.0.0.1:{port}" for port in ports]
                task = {"type": "worker", "index": worker}
                environment["TF_CONFIG"] = json.dumps(
                    {"cluster": {"worker": addresses}, "task": task}
                )
                environment["TF_NUM_INTRAOP_THREADS"] = str(max(1, (cpus or 1) // workers))
            self._processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        self.collectives = int(self._answers()[0].split()[1])

    def seconds(self, question: str, count: int) -> float:
        """Per step; the slowest process is the one that counts."""
        for process in self._processes:
            process.stdin.write(f"{question} {count}\n")
            process.stdin.flush()
        return max(map(float, self._answers())) / count

    def _answers(self) -> list[str]:
        answers = [process.stdout.readline() for process in self._processes]
        if not all(answers):
            raise SystemExit(f"{self.name} has ended, see above")
        return answers

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that were free a moment ago."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def spread(values: list[float], unit: float = 1.0, digits: int = 2) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles([v * unit for v in values], n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def measure(contenders: list[Contender], rounds: int, steps: int) -> dict[str, Any]:
    """Seconds per step and per all-reduce of every round, by contender."""
    taken: dict[str, Any] = {
        c.name: {"step": [], "reduce": [], "collectives": c.collectives} for c in contenders
    }
    order = random.Random(0)
    for _ in range(rounds):
        for contender in order.sample(contenders, len(contenders)):
            for question in ("step", "reduce"):
                taken[contender.name][question].append(contender.seconds(question, steps))
    return taken


def table(taken: dict[str, Any]) -> str:
    """The figures as Markdown; differences and ratios are taken round by round."""
    lines = [
        "| strategy | step, ms | × one device | more per step, ms | all-reduce, ms | collectives |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    one = taken["default"]["step"]
    for name, figures in taken.items():
        pairs = list(zip(figures["step"], one, strict=True))
        row = [f"`{name}`", spread(figures["step"], 1e3, 0)]
        if name == "default":
            row += ["1", "", "", ""]
        else:
            row += [
                spread([a / b for a, b in pairs]),
                spread([a - b for a, b in pairs], 1e3, 1),
                spread(figures["reduce"], 1e3, 1),
                str(figures["collectives"]),
            ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--batch", type=int, default=128, help="the global one; default: 128")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="per round; default: 5")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--json", action="store_true", help="print every round's seconds")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.network, options.batch)
        return
    names = list(dict.fromkeys(["default", *options.contenders]))
    contenders: list[Contender] = []
    try:
        for name in names:
            contenders.append(Contender(name, options.network, options.batch))
        taken = measure(contenders, options.rounds, options.steps)
    finally:
        for contender in contenders:
            contender.stop()
    if options.json:
        print(json.dumps({"options": vars(options), "seconds": taken}))
    else:
        rounds = f"{options.rounds} rounds of {options.steps} steps"
        print(f"{options.network}, global batch {options.batch}, {rounds}; median (quartiles)\n")
        print(table(taken))


if __name__ == "__main__":
    main()
