"""The picture to choose a network by shows what was measured, and what nothing else beats."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from keras_resnet.export.benchmarking import Benchmark, Delegate, Machine, Measurement
from keras_resnet.export.pareto import draw, front

COORDINATES = st.integers(0, 6).map(float) | st.floats(0, 10)


def dominates(one, other):
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(st.lists(st.tuples(COORDINATES, COORDINATES), max_size=30))
def test_the_front_is_what_no_point_dominates_and_nothing_else(points):
    found = front(points)
    for index, point in enumerate(points):
        is_dominated = any(dominates(other, point) for other in points)
        assert (index in found) != is_dominated
    assert len(set(found)) == len(found)
    costs = [points[index][0] for index in found]
    assert costs == sorted(costs)


def measurement(network, scheme, milliseconds, accuracy, threads=1):
    return Measurement(
        name=f"{network}-{scheme}",
        network=network,
        scheme=scheme,
        threads=threads,
        delegate=Delegate(partitions=1, operators=1, outside={}),
        latencies_ms=((milliseconds,) * 3,),
        ratio=(1.0, 1.0, 1.0),
        file_bytes=round(milliseconds * 1e5) + 50_000,
        memory_mib=None,
        accuracy=accuracy,
    )


def benchmark(*measurements):
    machine = Machine(
        cpu="a CPU of 5 $", cores=2, instruction_sets=(), system="Linux", litert="2", load=None
    )
    return Benchmark(
        machine=machine, seconds=1, queries=1, warmup=0, rounds=1, measurements=measurements
    )


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and gives the figure with its panels."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))

    def drawn(*measurements):
        draw(benchmark(*measurements), tmp_path / "pareto.png")
        return figures[-1].axes

    return drawn


def labels(axes):
    return {text.get_text() for text in axes.texts if isinstance(text, Annotation)}


def lines(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 1]


MEASURED = [
    measurement(f"resnet{depth}", scheme, depth * factor, accuracy - loss)
    for depth, accuracy in ((8, 0.85), (20, 0.90), (32, 0.91), (44, 0.92), (56, 0.925))
    for scheme, factor, loss in (("float32", 0.06, 0.0), ("int8", 0.02, 0.003))
]
UNTRAINED = [measurement("resnet50", scheme, 10.0, None) for scheme in ("float32", "int8")]


def test_two_panels_show_the_front_on_logarithmic_axes(drawn):
    latency, size = drawn(*MEASURED)
    for axes in (latency, size):
        assert axes.get_xscale() == "log"
        (line,) = lines(axes)
        assert line.get_drawstyle() == "steps-post"
    assert "ms" in latency.get_xlabel()
    assert "MB" in size.get_xlabel()
    (line,) = lines(latency)
    assert list(line.get_ydata()) == pytest.approx([0.847, 0.897, 0.907, 0.917, 0.922, 0.925])


def test_the_latency_is_the_90th_percentile(drawn):
    one = measurement("a", "int8", 1.0, 0.5)
    slow = Measurement(**{**vars(one), "latencies_ms": ((1.0,) * 80 + (9.0,) * 20,)})
    latency, _ = drawn(slow)
    assert [list(line.get_xdata()) for line in latency.lines] == [[9.0], [9.0]]


def test_labels_cover_neither_each_other_nor_a_point(drawn):
    for axes in drawn(*MEASURED):
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert len(boxes) >= len(lines(axes)[0].get_xdata())
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        for m in MEASURED:
            cost = m.percentile(90) if "ms" in axes.get_xlabel() else m.file_bytes / 1e6
            point = axes.transData.transform((cost, m.accuracy))
            assert not any(box.contains(*point) for box in boxes)


def test_what_is_on_the_front_is_named_however_crowded_it_is(drawn):
    crowd = [measurement("b", f"s{i}", 2 + i / 1000, 0.5) for i in range(40)]
    best = [measurement("a", "int8", 1.9, 0.5), measurement("c", "int8", 2.1, 0.51)]
    latency, _ = drawn(*crowd, *best)
    assert {"a-int8", "c-int8"} <= labels(latency)
    assert len(labels(latency)) < len(crowd)


def test_colors_tell_the_scheme_and_markers_the_network(drawn):
    axes, _ = drawn(*MEASURED)
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert len(points) == len(MEASURED)
    by = {m.name: point for m, point in zip(MEASURED, points, strict=True)}
    one, same_scheme, same_network = (
        by[name] for name in ("resnet8-int8", "resnet20-int8", "resnet8-float32")
    )
    assert one.get_color() == same_scheme.get_color() != same_network.get_color()
    assert one.get_marker() == same_network.get_marker() != same_scheme.get_marker()


def test_what_has_no_accuracy_is_given_none(drawn):
    latency, size, latency_strip, size_strip = drawn(*MEASURED, *UNTRAINED)
    for axes in (latency, size):
        assert all(max(line.get_ydata()) <= 0.925 for line in axes.lines)
        assert not {"resnet50-int8", "resnet50-float32"} & labels(axes)
    assert {text.get_text() for text in latency_strip.get_yticklabels()} == {
        "resnet50-int8", "resnet50-float32",
    }  # fmt: skip
    assert "without a measured accuracy" in latency_strip.get_title(loc="left")
    assert [list(line.get_xdata()) for line in size_strip.lines] == [[1.05], [1.05]]


def test_networks_that_were_never_trained_are_drawn_alone(drawn):
    assert len(drawn(*UNTRAINED)) == 2


def test_a_file_measured_with_several_threads_has_one_size(drawn):
    latency, size = drawn(*(measurement("a", "int8", 2.0 / n, 0.5, threads=n) for n in (1, 2)))
    assert labels(latency) == {"a-int8, 1 thread", "a-int8, 2 threads"}
    assert labels(size) == {"a-int8"}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_written_whatever_a_network_is_called(tmp_path, suffix):
    path = tmp_path / f"pareto.{suffix}"
    hostile = measurement("a $\\frac{ <b>", "int8", 1.0, 0.5)
    draw(benchmark(hostile, Measurement(**{**vars(hostile), "accuracy": None})), path)
    start = path.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if suffix == "png" else b"<?xml" in start
