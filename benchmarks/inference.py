"""Latency of an int8 ResNet-50 for one image: this package's file and its peers, taking turns.

    python benchmarks/inference.py                               # one thread, then two
    python benchmarks/inference.py --threads 1 --rounds 100 --json > figures.json
    python benchmarks/inference.py --contenders ours keras       # without the peers' packages

Every contender is a process of its own, which opens its file, runs it a few times, and then waits.
A round asks each of them in turn, in an order that changes from round to round, for the same number
of queries, and takes the median latency of those; the others sleep meanwhile. What is printed is
the median of the ratios of all rounds, with the quartiles in brackets, never the ratio of two
medians. A query hands over one image that lies in memory, runs the network and reads its output;
two queries that do not count come before those of a round.

    ours         ResNet50 of this package, `int8`, in LiteRT: raw uint8 pixels in, probabilities out
    keras        keras.applications.ResNet50 through plain TFLiteConverter, full integer, in LiteRT
    onnxruntime  the same network from PyTorch, quantized to QDQ by ONNX Runtime: weights int8, per
                 channel; activations uint8, its fastest pair on x86 (int8 took 2.3 times as long)
    openvino     the same ONNX file, quantized by NNCF, in OpenVINO with its latency hint
    torch        the same network in PyTorch, eager, float32, channels last

All of them are the network of He et al. 2015 with the stride on the first 1 x 1 convolution
(3.9 billion multiply-adds), with random weights whose batch normalization has seen a batch, and
were calibrated with made-up images: what they say is worth nothing, and how long it takes does not
depend on it. The peers' inputs are float32, ready for the network; this package's and TFLite's are
uint8, and the conversion is in the file.

`--files DIRECTORY` keeps the converted files for the next time. The peers come with
`pip install '.[inference]'`. Other programs on the same cores slow everyone down, but not alike:
those that share one image among several threads wait for the slowest. The load is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# The conversation between the one who asks and the contenders is that of the other benchmark.
from training import TASKS, Contender, Rounds, alternate, quartiles, torch_network

SIZE, CALIBRATION, UNTIMED = 224, 20, 2
INSTALL = "pip install '.[inference]'"


def images(count: int, size: int = SIZE) -> np.ndarray:
    """Made up, in patches: uint8 `(count, size, size, 3)`, with both 0 and 255 in it."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (count, size // 16, size // 16, 3)).repeat(16, 1).repeat(16, 2)
    noise = rng.integers(-20, 21, (count, size, size, 3))
    return np.clip(patches + noise, 0, 255).astype(np.uint8)


def warmed(model: Any, batch: np.ndarray) -> Any:
    """A Keras model whose batch normalization has the statistics of a batch."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(batch, training=True)
    return model


# How each contender's file is made, in a process that ends with it.


def prepare_ours(path: Path) -> None:
    """The package's own file."""
    untrained_file("resnet50", "int8", path)


def untrained_file(name: str, scheme: str, path: Path) -> None:
    """As `to_tflite` does it, but nothing is verified: the network knows nothing.

    Args:
        name: of a builder for photographs.
        scheme: of quantization.
        path: of the `.tflite` file to write.
    """
    import keras_resnet
    from keras_resnet.export.calibration import choose
    from keras_resnet.export.conversion import convert
    from keras_resnet.export.schemes import get_scheme
    from keras_resnet.export.source import SourceNetwork
    from keras_resnet.export.stem import fold_stem

    model = keras_resnet.create_model(name)
    size = model.input_shape[1:]
    preprocessing = keras_resnet.Preprocessing.from_model(model)
    warmed(model, preprocessing(images(8, size[0])))
    chosen = get_scheme(scheme)
    calibration = choose(images(CALIBRATION, size[0]), size, preprocessing, CALIBRATION)
    content = convert(SourceNetwork(model, preprocessing), chosen, calibration)
    path.write_bytes(fold_stem(content) if scheme == "int8" else content)


def prepare_keras(path: Path) -> None:
    """The recipe of TensorFlow's documentation for full integer quantization."""
    import keras
    import tensorflow as tf

    prepared = keras.applications.resnet.preprocess_input
    model = keras.applications.ResNet50(weights=None)
    warmed(model, prepared(images(8).astype(np.float32)))
    values = prepared(images(CALIBRATION).astype(np.float32))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([value[None]] for value in values)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    path.write_bytes(converter.convert())


def steps(path: Path) -> Path:
    """A directory for what is needed on the way to a file."""
    directory = path.parent / "steps"
    directory.mkdir(exist_ok=True)
    return directory


def torch_model() -> Any:
    """The network, warmed and ready for inference."""
    import torch

    torch.manual_seed(0)
    model = torch_network(TASKS["resnet50"])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.inference_mode():
        model.train()(torch.from_numpy(normalized(8)))
    return model.eval()


def normalized(count: int) -> np.ndarray:
    """The images as PyTorch's networks take them: float32 `(count, 3, 224, 224)`."""
    return np.ascontiguousarray(images(count).transpose(0, 3, 1, 2) / np.float32(128) - 1)


def export_onnx(path: Path) -> None:
    """PyTorch's network as a float32 ONNX file."""
    import torch

    torch.onnx.export(
        torch_model(),
        (torch.from_numpy(normalized(1)),),
        str(path),
        input_names=["images"],
        opset_version=17,
        dynamo=False,  # the other exporter needs one package more
    )


def prepare_onnxruntime(path: Path) -> None:
    """Static quantization as ONNX Runtime's documentation has it: optimize first, then QDQ."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._values = iter([{"images": value[None]} for value in normalized(CALIBRATION)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._values, None)

    plain, optimized = steps(path) / "float.onnx", steps(path) / "optimized.onnx"
    export_onnx(plain)
    quant_pre_process(str(plain), str(optimized))
    quantization.quantize_static(
        str(optimized),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def prepare_openvino(path: Path) -> None:
    """NNCF's quantization after training, with its defaults."""
    import nncf
    import openvino

    plain = steps(path) / "float.onnx"
    export_onnx(plain)
    dataset = nncf.Dataset([value[None] for value in normalized(CALIBRATION)])
    model = openvino.Core().read_model(plain)
    openvino.save_model(nncf.quantize(model, dataset, subset_size=CALIBRATION), path)


def prepare_torch(path: Path) -> None:
    """The weights."""
    import torch

    torch.save(torch_model().state_dict(), path)


# How each is run: from a file to a function that answers one query.


def run_litert(path: Path, threads: int) -> Callable[[], object]:
    """LiteRT's interpreter, with the delegate that it chooses itself."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    if source["dtype"] != np.uint8:
        raise ValueError(f"{path} was to take uint8 pixels. Received: {source['dtype'].__name__}")
    image = images(1)

    def query() -> object:
        interpreter.set_tensor(source["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return query


def run_onnxruntime(path: Path, threads: int) -> Callable[[], object]:
    """A session on the CPU, whose graph optimizations are all on by default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"images": normalized(1)}
    return lambda: session.run(None, feed)


def run_openvino(path: Path, threads: int) -> Callable[[], object]:
    """One stream, tuned for latency."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    image = normalized(1)
    return lambda: request.infer({0: image})[0]


def run_torch(path: Path, threads: int) -> Callable[[], object]:
    """Eager, in the layout that PyTorch recommends on a CPU."""
    import torch

    torch.set_num_threads(threads)
    model = torch_network(TASKS["resnet50"])
    model.load_state_dict(torch.load(path, weights_only=True))
    model = model.eval().to(memory_format=torch.channels_last)
    image = torch.from_numpy(normalized(1)).to(memory_format=torch.channels_last)

    def query() -> object:
        with torch.inference_mode():
            return model(image).numpy()

    return query


@dataclasses.dataclass(frozen=True)
class Kind:
    """A contender: its file, how that is made and run, and the packages it takes."""

    file: str
    prepare: Callable[[Path], None]
    run: Callable[[Path, int], Callable[[], object]]
    needs: tuple[str, ...] = ()


KINDS = {
    "ours": Kind("ours.tflite", prepare_ours, run_litert),
    "keras": Kind("keras.tflite", prepare_keras, run_litert),
    "onnxruntime": Kind(
        "ort.onnx", prepare_onnxruntime, run_onnxruntime, ("onnxruntime", "onnx", "torch")
    ),
    "openvino": Kind(
        "ov.xml", prepare_openvino, run_openvino, ("openvino", "nncf", "onnx", "torch")
    ),
    "torch": Kind("torch.pt", prepare_torch, run_torch, ("torch",)),
}


# The one who asks


class Waiting(Contender):
    """A process that answers queries on request."""

    def __init__(self, name: str, threads: int, files: Path, queries: int):
        self.name = name
        self.peak_mib = 0.0
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open while the process lives
        self._process = subprocess.Popen(
            command("--worker", name, "--threads", threads, "--files", files, "--queries", queries),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            text=True,
        )


def command(*arguments: object) -> list[str]:
    """What starts this program with other arguments."""
    return [sys.executable, __file__, *map(str, arguments)]


def work(kind: Kind, threads: int, files: Path, queries: int) -> None:
    """A contender's side: the median latency of every round."""
    rounds = Rounds()
    query = kind.run(files / kind.file, threads)
    while True:
        rounds.begin()
        rounds.end(median_latency(query, queries))


def median_latency(query: Callable[[], object], queries: int) -> float:
    """Seconds."""
    for _ in range(UNTIMED):
        query()
    times = []
    for _ in range(queries):
        before = time.perf_counter()
        query()
        times.append(time.perf_counter() - before)
    return float(np.median(times))


def missing(names: list[str]) -> Iterator[str]:
    """A line for every contender that cannot run here."""
    for name in names:
        absent = [need for need in KINDS[name].needs if importlib.util.find_spec(need) is None]
        if absent:
            yield f"{name} needs {', '.join(absent)}, not installed here: {INSTALL}"


def prepare(names: list[str], files: Path, told: Callable[[str], None]) -> None:
    """Makes the files that are not there yet.

    Raises:
        RuntimeError: if one cannot be made, with the end of what was said.
    """
    for name in names:
        if (files / KINDS[name].file).exists():
            continue
        told(f"{name} converts its network")
        done = subprocess.run(
            command("--prepare", name, "--files", files),
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{name} could not be converted:\n{done.stderr[-3000:]}")


def prepare_whole(kind: Kind, files: Path) -> None:
    """Makes a contender's files elsewhere first: an interrupted conversion leaves none."""
    with tempfile.TemporaryDirectory(dir=files) as directory:
        made = Path(directory) / kind.file
        kind.prepare(made)
        # The one that tells that all is there comes last.
        others = [path for path in made.parent.iterdir() if path.is_file() and path != made]
        for path in (*others, made):
            path.replace(files / path.name)


def measure(
    names: list[str], threads: int, files: Path, rounds: int, queries: int, told: Any
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Median latencies in seconds of every round, and peak memory in MiB, by contender."""
    contenders: list[Waiting] = []
    try:
        for name in names:
            contenders.append(Waiting(name, threads, files, queries))
        seconds = alternate(contenders, rounds, told)
    finally:
        for contender in contenders:
            contender.stop()
    return seconds, {contender.name: contender.peak_mib for contender in contenders}


def table(seconds: dict[str, list[float]], peaks: dict[str, float]) -> Iterator[str]:
    """Lines: latency and memory of each, and how long ours takes compared with it."""
    yield f"{'':14}{'ms':>24}{'peak MiB':>10}{'ours takes, of its time':>28}"
    for name, times in seconds.items():
        low, median, high = quartiles([1000 * t for t in times])
        line = f"{name:14}" + f"{median:8.2f} [{low:.2f}, {high:.2f}]".rjust(24)
        line += f"{peaks[name]:10.0f}"
        if "ours" in seconds:
            pairs = zip(seconds["ours"], times, strict=True)
            low, median, high = quartiles([mine / theirs for mine, theirs in pairs])
            line += f"{median:.3f} [{low:.3f}, {high:.3f}]".rjust(28)
        yield line


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2"
    )
    parser.add_argument("--rounds", type=int, default=40, help="default: 40")
    parser.add_argument("--queries", type=int, default=10, help="per round; default: 10")
    parser.add_argument(
        "--contenders", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME",
        help=f"of {', '.join(KINDS)}; default: all",
    )  # fmt: skip
    parser.add_argument("--files", type=Path, help="directory that keeps the converted files")
    parser.add_argument("--json", action="store_true", help="the seconds of every round instead")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.rounds, options.queries, *options.threads) < 1:
        parser.error("--threads, --rounds and --queries must be positive")
    return options


def told(what: str) -> None:
    """Progress, for people."""
    if sys.stderr.isatty():
        print(f"\r{what:60}\r", end="", file=sys.stderr, flush=True)


def compare(options: argparse.Namespace, files: Path) -> None:
    """Converts, measures in turns and prints medians."""
    from keras_resnet.export.benchmarking import this_machine

    names = list(dict.fromkeys(options.contenders))
    prepare(names, files, told)
    machine = this_machine()
    report: dict[str, Any] = {"machine": dataclasses.asdict(machine), "threads": {}}
    for threads in options.threads:
        seconds, peaks = measure(names, threads, files, options.rounds, options.queries, told)
        told("")
        report["threads"][threads] = {"seconds": seconds, "peak_mib": peaks}
        if not options.json:
            print(
                f"ResNet-50, one image, {threads} thread{'s' * (threads > 1)}: {options.rounds} "
                f"rounds of {options.queries} queries, median [quartiles]"
            )
            print(*table(seconds, peaks), "", sep="\n")
    if options.json:
        print(json.dumps(report))
    else:
        print(f"{machine.cpu}, {machine.cores} cores; {machine.system}; load {machine.load}")


def main() -> None:
    """Measures in turns, or is one of those that are asked."""
    options = parse()
    if options.worker:
        work(KINDS[options.worker], options.threads[0], options.files, options.queries)
    elif options.prepare:
        prepare_whole(KINDS[options.prepare], options.files)
    else:
        absent = list(missing(options.contenders))
        if absent:
            sys.exit("\n".join([*absent, "Or leave them out with --contenders."]))
        with contextlib.ExitStack() as stack:
            if options.files is None:
                files = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            else:
                files = options.files
                files.mkdir(parents=True, exist_ok=True)
            try:
                compare(options, files)
            except RuntimeError as error:
                sys.exit(f"\n{error}")


if __name__ == "__main__":
    main()
