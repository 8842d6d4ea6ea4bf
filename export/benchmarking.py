"""How long a bundle takes for an image, measured as MLPerf's single stream does.

One query is one run of the file: the input, which lies in memory, is handed over, the graph runs,
and the output is read. The next query starts when the last one has ended. A run counts only after
a warm-up, and only if it lasted long enough *and* held enough queries. MLPerf's own numbers are 60
seconds and 1,024 queries (MLPerf Inference Rules 0.5, section 3, "Single stream"; still those of
MLPerf Mobile, `flutter/assets/tasks.pbtxt` of mlcommons/mobile_app_open, run "normal"); the default
here is that file's run "quick", 10 seconds and 128 queries. MLPerf quotes the 90th percentile.

Several files take turns, in an order that changes from round to round, so that all of them see the
same machine; they are compared by the ratios within a round.

LiteRT and numpy are all it takes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.export.bundle import Bundle
from keras_resnet.export.graph import read_graph
from keras_resnet.quiet import held_back_stderr
from keras_resnet.tables import columns

SECONDS, QUERIES = 10.0, 128
MLPERF_SECONDS, MLPERF_QUERIES = 60.0, 1024
WARMUP, ROUNDS = 0.5, 10

# What the kernels of XNNPACK and its like choose by, as Linux spells it on x86 and on ARM.
_INSTRUCTION_SETS = (
    *("sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni"),
    *("avx512_fp16", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)

Quartiles = tuple[float, float, float]


def _progress(text: str) -> None:
    sys.stderr.write(f"\r{text:60}\r")
    sys.stderr.flush()


def _silence(text: str) -> None:
    """Says nothing, where nobody would read it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it was measured.

    Attributes:
        cpu: the model's name.
        cores: how many this process may use.
        instruction_sets: those that kernels are chosen by; empty where the system does not tell.
        system: of operation, e.g. `"Linux 6.1 x86_64"`.
        litert: version of ai-edge-litert.
        load: how many programs wanted a core in the last minute, before it began; None where the
            system does not tell.
    """

    cpu: str
    cores: int
    instruction_sets: tuple[str, ...]
    system: str
    litert: str
    load: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delegate:
    """What LiteRT really did with a graph, as its interpreter shows after allocation.

    Attributes:
        partitions: how many pieces XNNPACK runs; 0 if it took nothing.
        operators: of the graph, all of them.
        outside: operators left to LiteRT's own kernels, by name. Each border between the two costs
            a copy, and inside a partition XNNPACK can fuse.
    """

    partitions: int
    operators: int
    outside: dict[str, int]

    def __str__(self) -> str:
        if not self.partitions:
            return f"no delegate: {self.operators} operators in LiteRT's own kernels"
        inside = self.operators - sum(self.outside.values())
        pieces = "1 partition" if self.partitions == 1 else f"{self.partitions} partitions"
        text = f"XNNPACK: {inside} of {self.operators} operators in {pieces}"
        left = ", ".join(f"{name} {count}" for name, count in self.outside.items())
        return f"{text}; outside: {left}" if left else text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One file at one number of threads.

    Attributes:
        name: of the bundle or the file.
        network: name of the model that the bundle was exported from; None for a bare file.
        scheme: what the graph really is, from `Graph.scheme`.
        threads: of the CPU.
        delegate: what runs the graph.
        latencies_ms: of every query, in milliseconds, one tuple per round.
        ratio: lower quartile, median and upper quartile over the rounds of its median latency,
            divided by that of the first measurement in the same round.
        file_bytes: size of the `.tflite` file.
        memory_mib: how much the peak memory of a fresh process grows by opening the file and
            running it, in MiB; None where the system does not tell.
        accuracy: of the exported file on the evaluation images, from the manifest; None for a bare
            file and for a bundle that was exported without.
    """

    name: str
    network: str | None
    scheme: str
    threads: int
    delegate: Delegate
    latencies_ms: tuple[tuple[float, ...], ...]
    ratio: Quartiles
    file_bytes: int
    memory_mib: float | None
    accuracy: float | None

    @property
    def queries(self) -> int:
        """How many were timed."""
        return sum(map(len, self.latencies_ms))

    def percentile(self, percent: float) -> float:
        """Latency in milliseconds that so many percent of the queries did not exceed.

        One that was really measured, never one in between; MLPerf's LoadGen does the same.
        """
        return _percentile([value for turn in self.latencies_ms for value in turn], percent)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; of the latencies, percentiles and the median of every round."""
        fields = dataclasses.asdict(self)
        turns = fields.pop("latencies_ms")
        return fields | {
            "queries": self.queries,
            "p50_ms": self.percentile(50),
            "p90_ms": self.percentile(90),
            "p99_ms": self.percentile(99),
            "round_p50_ms": [_percentile(turn, 50) for turn in turns],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What `benchmark` measured.

    Attributes:
        machine: where.
        seconds: shortest duration of each measurement.
        queries: smallest number of queries of each.
        warmup: seconds before.
        rounds: in how many turns each was measured.
        measurements: every file at every number of threads; ratios are to the first.
    """

    machine: Machine
    seconds: float
    queries: int
    warmup: float
    rounds: int
    measurements: tuple[Measurement, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {
            "scenario": "single stream",
            "measurements": [measurement.to_dict() for measurement in self.measurements],
        }

    def __str__(self) -> str:
        return "\n".join([*columns(list(self._rows())), "", *self._notes()])

    def _rows(self) -> Iterator[list[str]]:
        several = len(self.measurements) > 1
        accurate = any(m.accuracy is not None for m in self.measurements)
        yield [
            *("", "scheme", "threads", "p50 ms", "p90 ms", "p99 ms", "queries"),
            *(["ratio [quartiles]"] if several else []),
            *(["accuracy"] if accurate else []),
            *("file MB", "memory MiB"),
        ]
        for m in self.measurements:
            low, median, high = m.ratio
            yield [
                *(m.name, m.scheme, str(m.threads)),
                *(f"{m.percentile(percent):.2f}" for percent in (50, 90, 99)),
                f"{m.queries:,}",
                *([f"{median:.3f} [{low:.3f}, {high:.3f}]"] if several else []),
                *(["-" if m.accuracy is None else f"{m.accuracy:.2%}"] if accurate else []),
                f"{m.file_bytes / 1e6:.2f}",
                "-" if m.memory_mib is None else f"{m.memory_mib:.1f}",
            ]

    def _notes(self) -> Iterator[str]:
        for text, names in _grouped((str(m.delegate), m.name) for m in self.measurements):
            yield f"{', '.join(dict.fromkeys(names))}: {text}"
        machine = self.machine
        sets = f" ({' '.join(machine.instruction_sets)})" if machine.instruction_sets else ""
        cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
        yield f"{machine.cpu}, {cores}{sets}; {machine.system}; LiteRT {machine.litert}"
        if machine.load is not None and machine.load > 0.5:
            yield f"Other programs were running (load {machine.load:.1f}): trust the ratios only."
        short = self.seconds < MLPERF_SECONDS or self.queries < MLPERF_QUERIES
        yield (
            f"Single stream: at least {self.seconds:g} s and {self.queries:,} queries each, in "
            f"{self.rounds} rounds, after {self.warmup:g} s of warm-up"
            + (f"; MLPerf asks for {MLPERF_SECONDS:g} s and {MLPERF_QUERIES:,}" if short else "")
        )


def benchmark(
    bundles: str | os.PathLike[str] | Bundle | Sequence[str | os.PathLike[str] | Bundle],
    *,
    threads: int | Sequence[int] | None = None,
    seconds: float = SECONDS,
    queries: int = QUERIES,
    warmup: float = WARMUP,
    rounds: int = ROUNDS,
) -> Benchmark:
    """Measures the latency of bundles, or of any `.tflite` files, in turns.

    Progress goes to standard error if that is a terminal. The pixels are random numbers.

    Args:
        bundles: a bundle's directory, an open bundle, or a `.tflite` file; or several of them.
        threads: of the CPU; several numbers measure each file with each of them. None is one
            thread, which is LiteRT's own default.
        seconds: shortest duration of the timed queries of each measurement.
        queries: smallest number of them.
        warmup: seconds of queries that do not count, before the first round.
        rounds: in how many turns every measurement is split.

    Returns:
        Latencies, delegates, sizes and ratios, with the machine they belong to.

    Raises:
        FileNotFoundError: if there is no such bundle or file.
        BundleError: if a directory is no bundle, or was changed after it was exported.
        ValueError: if a file is no `.tflite` file or LiteRT cannot run it, if there is none, or if
            an argument is out of range.

    Source: MLPerf Inference Rules, "Single stream"; see the head of this module.
    """
    if isinstance(bundles, str | os.PathLike | Bundle):
        bundles = [bundles]
    if not bundles:
        raise ValueError("Argument `bundles` must name at least one bundle. Received: none")
    counts = [1] if threads is None else [threads] if isinstance(threads, int) else list(threads)
    _check_arguments(counts, seconds, queries, warmup, rounds)
    machine = this_machine()
    told = _progress if sys.stderr.isatty() else _silence
    contenders = []
    for count in counts:
        for name, bundle in zip(_names(bundles), bundles, strict=True):
            told(f"opening {name}")
            contenders.append(_Contender.open(name, bundle, count))
    latencies = take_turns(
        [contender.query for contender in contenders],
        seconds=seconds,
        queries=queries,
        warmup=warmup,
        rounds=rounds,
        told=told,
    )
    told("")
    ratios = _ratios(latencies)
    measurements = tuple(
        contender.measured(turns, ratio)
        for contender, turns, ratio in zip(contenders, latencies, ratios, strict=True)
    )
    return Benchmark(
        machine=machine,
        seconds=seconds,
        queries=queries,
        warmup=warmup,
        rounds=rounds,
        measurements=measurements,
    )


def take_turns(
    runs: Sequence[Callable[[], object]],
    *,
    seconds: float,
    queries: int,
    warmup: float,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    told: Callable[[str], None] = _silence,
) -> list[list[list[float]]]:
    """Times several functions in turns.

    Every round gives every function one turn, a stream of calls without a pause. The first call of
    a turn does not count: the caches still hold what the one before has left there.

    Args:
        runs: the functions.
        seconds: shortest time of each in all rounds together.
        queries: smallest number of calls of each in all rounds together.
        warmup: seconds of each before the first round; at least one call.
        rounds: how many turns each gets.
        clock: seconds since whenever.
        told: gets a line about every round.

    Returns:
        Milliseconds by function, round and call.
    """
    for run in runs:
        stop = clock() + warmup
        run()
        while clock() < stop:
            run()
    latencies: list[list[list[float]]] = [[] for _ in runs]
    for number in range(rounds):
        told(f"round {number + 1} of {rounds}")
        for index in order_of_round(len(runs), number):
            turn = _turn(runs[index], seconds / rounds, math.ceil(queries / rounds), clock)
            latencies[index].append(turn)
    return latencies


def order_of_round(count: int, number: int) -> list[int]:
    """Who comes after whom: in `count` rounds everyone takes every place once.

    Then the direction turns, so that nobody always follows the same one.
    """
    shift, backwards = number % count, number // count % 2
    order = [(shift + place) % count for place in range(count)]
    return order[::-1] if backwards else order


def _turn(
    run: Callable[[], object], seconds: float, queries: int, clock: Callable[[], float]
) -> list[float]:
    run()
    times: list[float] = []
    start = before = clock()
    while len(times) < queries or before - start < seconds:
        run()
        after = clock()
        times.append(1000 * (after - before))
        before = after
    return times


def _ratios(latencies: list[list[list[float]]]) -> list[Quartiles]:
    """Quartiles over the rounds of everyone's median latency to the first one's."""
    medians = np.array([[_percentile(turn, 50) for turn in turns] for turns in latencies])
    quartiles = np.percentile(medians / medians[0], (25, 50, 75), axis=1).T
    return [(float(low), float(middle), float(high)) for low, middle, high in quartiles]


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent, method="higher"))


def applied_delegate(interpreter: Any) -> Delegate:
    """Which operators of a graph XNNPACK took over, and in how many pieces.

    LiteRT keeps the operators that a delegate has replaced, and appends one that stands for each
    partition. What lies between the tensors that a partition takes and those that it gives is in
    it; no public function tells.

    Args:
        interpreter: a LiteRT interpreter without other delegates, after `allocate_tensors`.
    """
    nodes = interpreter._get_ops_details()
    partitions = [node for node in nodes if node["op_name"] == "DELEGATE"]
    operators = [node for node in nodes if node["op_name"] != "DELEGATE"]
    made_by = {int(tensor): node for node in operators for tensor in node["outputs"]}
    inside: set[int] = set()
    for partition in partitions:
        given = {int(tensor) for tensor in partition["inputs"]}
        wanted = [int(tensor) for tensor in partition["outputs"]]
        while wanted:
            node = made_by.get(wanted.pop())
            if node is not None and node["index"] not in inside:
                inside.add(node["index"])
                wanted += [int(tensor) for tensor in node["inputs"] if int(tensor) not in given]
    outside = collections.Counter(n["op_name"] for n in operators if n["index"] not in inside)
    return Delegate(
        partitions=len(partitions),
        operators=len(operators),
        outside=dict(outside.most_common()),
    )


@dataclasses.dataclass(frozen=True)
class _Contender:
    """A file that stands ready in an interpreter, and what there is to say of it."""

    facts: dict[str, Any]
    query: Callable[[], object]

    @classmethod
    def open(cls, name: str, bundle: str | os.PathLike[str] | Bundle, threads: int) -> _Contender:
        path, network, accuracy = _told(bundle)
        scheme = read_graph(path).scheme  # also the clearest error for a file that is none
        interpreter = _allocated(path, threads)
        facts = {
            "name": name,
            "network": network,
            "scheme": scheme,
            "threads": threads,
            "delegate": applied_delegate(interpreter),
            "file_bytes": path.stat().st_size,
            "memory_mib": _memory_mib(path, threads),
            "accuracy": accuracy,
        }
        return cls(facts, _query(interpreter))

    def measured(self, turns: list[list[float]], ratio: Quartiles) -> Measurement:
        return Measurement(**self.facts, latencies_ms=tuple(map(tuple, turns)), ratio=ratio)


def _told(bundle: str | os.PathLike[str] | Bundle) -> tuple[Path, str | None, float | None]:
    """The file, and what a bundle's manifest says of its network and its accuracy."""
    if not isinstance(bundle, Bundle):
        path = Path(bundle)
        if not path.exists():
            raise FileNotFoundError(f"No such bundle, and no such file: {path}")
        if path.is_file():
            return path, None, None
        bundle = Bundle.open(path)
    accuracy = bundle.verification.accuracy
    measured = None if accuracy is None else accuracy.exported_accuracy
    return bundle.model_path, str(bundle.manifest["model"]), measured


def _allocated(path: Path, threads: int) -> Any:
    """An interpreter that is ready to run."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        # LiteRT announces its delegate there. Whoever measures owns the process anyway.
        with held_back_stderr():
            interpreter = Interpreter(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"LiteRT cannot run {path}: {error}") from error
    return interpreter


def _query(interpreter: Any) -> Callable[[], object]:
    """One inference: inputs in, run, outputs out, as a program that has pixels does it."""
    rng = np.random.default_rng(0)
    inputs = [
        (detail["index"], _random_pixels(rng, detail["shape"], detail["dtype"]))
        for detail in interpreter.get_input_details()
    ]
    outputs = [detail["index"] for detail in interpreter.get_output_details()]

    def query() -> object:
        for index, pixels in inputs:
            interpreter.set_tensor(index, pixels)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return query


def _random_pixels(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> np.ndarray:
    pixels = rng.integers(0, 256, tuple(shape), np.uint8)
    return pixels.view(np.int8) if dtype == np.int8 else pixels.astype(dtype)


def _check_arguments(
    threads: list[int], seconds: float, queries: int, warmup: float, rounds: int
) -> None:
    if not threads:
        raise ValueError("Argument `threads` must hold at least one number. Received: none")
    for name, values in {"threads": threads, "queries": [queries], "rounds": [rounds]}.items():
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"Argument `{name}` must be a positive integer. Received: {name}={value!r}"
                )
    for name, duration in {"seconds": seconds, "warmup": warmup}.items():
        if not (math.isfinite(duration) and duration >= 0):
            raise ValueError(
                f"Argument `{name}` must be a number of seconds, 0 or more. "
                f"Received: {name}={duration!r}"
            )


def _names(bundles: Sequence[str | os.PathLike[str] | Bundle]) -> list[str]:
    """The last part of every path, or all of it where two end alike."""
    paths = [b.path if isinstance(b, Bundle) else Path(b) for b in bundles]
    same = collections.Counter(path.name for path in set(paths))
    return [path.name if path.name and same[path.name] == 1 else str(path) for path in paths]


def _grouped(pairs: Iterator[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return list(groups.items())


# The machine. Each system tells what it knows in a place of its own; where it does not, None.


def this_machine() -> Machine:
    """Where this process runs, as far as the system tells."""
    name, flags = _cpu()
    return Machine(
        cpu=name,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _all_cores(),
        instruction_sets=tuple(flag for flag in _INSTRUCTION_SETS if flag in flags),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        litert=importlib.metadata.version("ai-edge-litert"),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _all_cores() -> int:
    return os.cpu_count() or 1


def _cpu() -> tuple[str, set[str]]:
    """The model's name and the flags of its instruction sets."""
    text = ""
    with contextlib.suppress(OSError):  # only Linux has it
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    fields: dict[str, str] = dict(re.findall(r"^([^\t:\n]+?)\s*: (.*)$", text, re.MULTILINE))
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    name = fields.get("model name") or _device_tree_model() or _apple_cpu()
    return name or platform.processor() or platform.machine() or "unknown CPU", flags


def _device_tree_model() -> str:
    """What an ARM board calls itself, e.g. `"Raspberry Pi 5 Model B Rev 1.0"`."""
    with contextlib.suppress(OSError):
        path = Path("/proc/device-tree/model")
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    return ""


def _apple_cpu() -> str:
    if sys.platform != "darwin":
        return ""
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


_STATUS = Path("/proc/self/status")  # only Linux has it
# Not the peak that `getrusage` tells: a child begins with that of its parent.
_MEMORY_PROGRAM = """
import re, sys
from ai_edge_litert.interpreter import Interpreter

def peak():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", file.read())[1])

before = peak()
interpreter = Interpreter(model_path=sys.argv[1], num_threads=int(sys.argv[2]))
interpreter.allocate_tensors()
interpreter.invoke()  # XNNPACK takes the rest of its memory when it first runs
print(peak() - before)
"""


def _memory_mib(path: Path, threads: int) -> float | None:
    """What a process of its own needs for the file: here, others lie in memory already."""
    if not _STATUS.exists():
        return None
    command = [sys.executable, "-c", _MEMORY_PROGRAM, str(path), str(threads)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ValueError(f"LiteRT cannot run {path}: {ended.stderr.strip()[-500:]}")
    return int(ended.stdout) / 2**10
