"""What a benchmark says is what was measured, of what was really run."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from processes import run_python
from tflite_files import float_file, int8_file, noise, small

from keras_resnet.export import delegation, flatbuffer
from keras_resnet.export import graph as graphs
from keras_resnet.export.benchmarking import (
    Delegate,
    Measurement,
    benchmark,
    order_of_round,
    take_turns,
)
from keras_resnet.export.bundle import BundleError, write_files
from keras_resnet.export.verification import AccuracyComparison, Parity, Verification
from keras_resnet.preprocessing import Preprocessing

QUICK = {"seconds": 0, "queries": 4, "warmup": 0, "rounds": 2}


@pytest.fixture(scope="module")
def float_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "float.tflite"
    path.write_bytes(float_file(small()))
    return path


@pytest.fixture(scope="module")
def int8_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "int8.tflite"
    path.write_bytes(int8_file(small(), tf.uint8))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, float_path):
    path = tmp_path_factory.mktemp("bundles") / "digits-float32"
    path.mkdir()
    pixels = noise(2)
    expected = small().predict_on_batch(pixels / np.float32(128) - 1)
    accuracy = AccuracyComparison(
        examples=8,
        source_correct=7,
        exported_correct=6,
        only_source_correct=1,
        only_exported_correct=0,
        max_drop=0.5,
    )
    parity = Parity(images=2, max_difference=0.0, mean_difference=0.0, top1_agreement=1.0)
    verification = Verification(scheme="float32", parity=parity, accuracy=accuracy)
    facts = {
        "model": "small",
        "scheme": "float32",
        "preprocessing": Preprocessing().to_dict(),
        "verification": verification.to_dict(),
    }
    labels = tuple(map(str, range(10)))
    write_files(path, float_path.read_bytes(), labels, (pixels, expected), facts)
    return path


@pytest.fixture(scope="module")
def cut_path(tmp_path_factory):
    """XNNPACK knows no REVERSE_V2, so two of them leave three pieces of a network."""
    x = pixels = keras.Input((32, 32, 3))
    for _ in range(2):
        x = keras.layers.Conv2D(4, 3, activation="relu")(x)
        x = keras.ops.flip(x, axis=1)
    scores = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    path = tmp_path_factory.mktemp("files") / "cut.tflite"
    path.write_bytes(float_file(keras.Model(pixels, scores)))
    return path


class Clock:
    """One that only the runs move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def run(self, *durations):
        """A function that takes so many seconds at each call, and the last number for ever."""
        left = list(durations)

        def run():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


class TestTurns:
    def turns(self, clock, runs, **options):
        defaults = {"seconds": 0, "queries": 1, "warmup": 0, "rounds": 1}
        return take_turns(runs, clock=clock, **(defaults | options))

    def test_every_query_is_timed_alone_and_in_milliseconds(self):
        clock = Clock()
        untimed = (9, 9)  # the warm-up, and the first query of the turn
        ((turn,),) = self.turns(clock, [clock.run(*untimed, 1, 2, 3)], queries=3)
        assert turn == [1000, 2000, 3000]

    @pytest.mark.parametrize(
        ("seconds", "queries", "expected"), [(6, 4, [3, 3]), (1, 8, [4, 4]), (0, 3, [2, 2])]
    )
    def test_a_turn_lasts_long_enough_and_holds_enough_queries(self, seconds, queries, expected):
        clock = Clock()
        (turns,) = self.turns(clock, [clock.run(1)], seconds=seconds, queries=queries, rounds=2)
        assert list(map(len, turns)) == expected

    def test_the_warm_up_lasts_as_long_as_asked(self):
        clock = Clock()
        cold = [100] * 5
        ((turn,),) = self.turns(clock, [clock.run(*cold, 1)], warmup=450, queries=2)
        assert turn == [1000, 1000]

    def test_the_order_changes_from_round_to_round(self):
        clock, seen = Clock(), []

        def named(name):
            return lambda: seen.append(name) or clock.run(1)()

        self.turns(clock, [named("a"), named("b")], rounds=4)
        asked = seen[2::2]  # after the warm-up; every turn is two queries
        assert asked == ["a", "b", "b", "a", "b", "a", "a", "b"]

    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_everyone_takes_every_place_equally_often(self, count):
        orders = [order_of_round(count, number) for number in range(2 * count)]
        for place in zip(*orders, strict=True):
            assert sorted(place) == sorted([*range(count)] * 2)

    def test_nobody_always_follows_the_same_one(self):
        orders = [order_of_round(3, number) for number in range(6)]
        before = {order[order.index(0) - 1] for order in orders if order[0] != 0}
        assert before == {1, 2}


class TestPercentiles:
    def measurement(self, latencies):
        return Measurement(
            name="a",
            network=None,
            scheme="int8",
            threads=1,
            delegate=Delegate(partitions=1, operators=2, outside={}),
            latencies_ms=latencies,
            ratio=(1.0, 1.0, 1.0),
            file_bytes=1000,
            memory_mib=None,
            accuracy=None,
        )

    def test_they_are_latencies_that_occurred_in_all_rounds_together(self):
        values = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
        turns = (tuple(values[:30]), tuple(values[30:]))
        measurement = self.measurement(turns)
        # As in MLPerf's LoadGen: the value at index n * p of the sorted ones.
        assert [measurement.percentile(p) for p in (50, 90, 99)] == [51, 91, 100]
        told = measurement.to_dict()
        assert (told["p50_ms"], told["p90_ms"], told["p99_ms"], told["queries"]) == (
            51, 91, 100, 100,
        )  # fmt: skip

    def test_one_slow_query_in_a_hundred_is_seen_at_99_and_not_at_90(self):
        measurement = self.measurement(((1.0,) * 99 + (50.0,),))
        assert (measurement.percentile(90), measurement.percentile(99)) == (1, 50)


class TestDelegate:
    def test_a_graph_that_xnnpack_takes_whole_is_one_partition(self, float_path):
        (measured,) = benchmark(float_path, **QUICK).measurements
        assert measured.delegate.partitions == 1
        assert measured.delegate.outside == {}
        assert str(measured.delegate).endswith("operators in 1 partition")

    def test_what_stands_outside_is_named(self, cut_path, int8_path):
        cut, quantized = benchmark([cut_path, int8_path], **QUICK).measurements
        assert cut.delegate.partitions == 3
        assert cut.delegate.outside == {"REVERSE_V2": 2}
        assert "in 3 partitions; outside: REVERSE_V2 2" in str(cut.delegate)
        assert quantized.delegate.outside["QUANTIZE"] >= 1

    def test_it_is_what_the_inspection_foretells(self, cut_path, int8_path, float_path):
        for path in (cut_path, int8_path, float_path):
            (measured,) = benchmark(path, **QUICK).measurements
            graph = graphs.read_graph(path)
            pieces = delegation.partitions(graph)
            assert measured.delegate.partitions == len(pieces)
            assert measured.delegate.operators == len(graph.operators)
            outside = len(graph.operators) - sum(map(len, pieces))
            assert sum(measured.delegate.outside.values()) == outside


class TestBenchmark:
    def test_a_bundle_comes_with_its_size_scheme_and_accuracy(self, bundle):
        result = benchmark(bundle, **QUICK)
        (measured,) = result.measurements
        assert measured.name == "digits-float32"
        assert measured.network == "small"
        assert measured.scheme == "float32"
        assert measured.accuracy == 6 / 8
        assert measured.file_bytes == (bundle / "model.tflite").stat().st_size
        assert measured.queries == 4
        assert measured.threads == 1
        assert "75.00%" in str(result)

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
    def test_memory_grows_by_more_than_the_weights(self, bundle):
        (measured,) = benchmark(bundle, **QUICK).measurements
        assert 0 < measured.memory_mib < 100

    def test_files_are_compared_with_the_first_at_every_number_of_threads(self, bundle, int8_path):
        result = benchmark([bundle, int8_path], threads=[1, 2], **QUICK)
        names = [(m.name, m.threads) for m in result.measurements]
        assert names == [
            ("digits-float32", 1), ("int8.tflite", 1), ("digits-float32", 2), ("int8.tflite", 2),
        ]  # fmt: skip
        first, *others = result.measurements
        assert first.ratio == (1.0, 1.0, 1.0)
        of_first = np.array(first.to_dict()["round_p50_ms"])
        for other in others:
            ratios = np.array(other.to_dict()["round_p50_ms"]) / of_first
            assert other.ratio == pytest.approx(np.percentile(ratios, (25, 50, 75)))
            assert other.ratio[0] <= other.ratio[1] <= other.ratio[2]

    def test_it_can_be_read_by_people_and_by_programs(self, bundle, int8_path):
        result = benchmark([bundle, int8_path], **QUICK)
        told = json.loads(json.dumps(result.to_dict()))
        assert told["scenario"] == "single stream"
        assert told["machine"]["cpu"]
        assert told["machine"]["cores"] >= 1
        assert told["machine"]["litert"]
        assert [m["accuracy"] for m in told["measurements"]] == [0.75, None]
        text = str(result)
        for word in ("p90 ms", "ratio", "75.00%", "XNNPACK", told["machine"]["cpu"], "MLPerf"):
            assert word in text

    def test_files_of_the_same_name_are_told_apart(self, float_path, tmp_path):
        other = tmp_path / "float.tflite"
        other.write_bytes(float_path.read_bytes())
        names = [m.name for m in benchmark([float_path, other], **QUICK).measurements]
        assert names == [str(float_path), str(other)]

    def test_progress_shows_on_a_terminal_alone(self, float_path, capsys, monkeypatch):
        benchmark(float_path, **QUICK)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        benchmark(float_path, **QUICK)
        assert "round 2 of 2" in capsys.readouterr().err

    def test_it_takes_neither_tensorflow_nor_keras(self, bundle):
        done = run_python(
            """
            import json, sys
            for name in ("tensorflow", "keras", "PIL"):
                sys.modules[name] = None
            from keras_resnet.export.benchmarking import benchmark
            result = benchmark(sys.argv[1], seconds=0, queries=1, warmup=0, rounds=1)
            print(result.measurements[0].scheme)
            """,
            str(bundle),
        )
        assert done.stdout.split() == ["float32"]
        assert done.stderr == ""


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("threads", value) for value in (0, -1, True, [], [1, 0], [1.5])),
            *(("seconds", value) for value in (-1, float("nan"), float("inf"))),
            *(("queries", 0), ("rounds", 0), ("warmup", -1)),
        ],
    )
    def test_an_argument_out_of_range_is_named(self, name, value, float_path):
        with pytest.raises(ValueError, match=rf"`{name}` must.*Received"):
            benchmark(float_path, **(QUICK | {name: value}))

    def test_nothing_to_measure_is_refused(self):
        with pytest.raises(ValueError, match="`bundles` must name at least one"):
            benchmark([])

    def test_what_is_not_there_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            benchmark(tmp_path / "nowhere")

    def test_a_directory_that_is_no_bundle_is_refused(self, tmp_path):
        with pytest.raises(BundleError, match="is no bundle"):
            benchmark(tmp_path)

    @pytest.mark.parametrize("keep", [0, 3, 1000])
    def test_a_broken_file_is_refused(self, keep, float_path, tmp_path):
        broken = tmp_path / "broken.tflite"
        broken.write_bytes(float_path.read_bytes()[:keep])
        with pytest.raises(ValueError, match=r"broken\.tflite"):
            benchmark(broken, **QUICK)

    def test_a_file_that_litert_cannot_prepare_is_named(self, int8_path, tmp_path):
        model = flatbuffer.unpack(int8_path.read_bytes())
        convolution = next(o for o in model.subgraphs[0].operators if len(o.inputs) == 3)
        output = model.subgraphs[0].tensors[convolution.outputs[0]]
        output.quantization.scale = [1e-9]  # every weight then has a factor far above 256
        path = tmp_path / "stale.tflite"
        path.write_bytes(flatbuffer.pack(model))
        with pytest.raises(ValueError, match=r"LiteRT cannot run .*stale\.tflite"):
            benchmark(path, **QUICK)
