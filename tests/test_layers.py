"""Where a quantized network loses precision, and what it takes to repair it."""

import dataclasses
import xml.etree.ElementTree as ET

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toys import TINY, paint

import keras_resnet
from keras_resnet import Preprocessing, export
from keras_resnet.export import tflite
from keras_resnet.export.graph import read_graph
from keras_resnet.export.layers import (
    LayerError,
    compare_layers,
    draw,
    layer_names,
    layer_of,
    table,
)
from keras_resnet.export.quantizer import quantize
from keras_resnet.export.repair import repair
from keras_resnet.export.runtime import Runner
from keras_resnet.export.source import SourceNetwork
from keras_resnet.export.verification import (
    Parity,
    Verification,
    compare,
    compare_accuracy,
    judge,
    real_scheme,
    reload,
)


class TestLayerOf:
    names = ("stem_conv", "stem_act", "add", "add_1", "out", "pad", "norm", "conv2d", "conv2d_1")

    @pytest.mark.parametrize(
        ("tensor", "layer"),
        [
            ("functional_1/stem_act_1/Relu;functional_1/stem_conv_1/convolution", "stem_conv"),
            ("f/out_1/Relu;f/add_1/Add", "add"),
            ("f/norm_1/batchnorm/mul_1", "norm"),
            ("f/stem_act_1/Relu6;f/stem_conv_1/depthwise;f/pad_1/Pad1", "stem_conv"),
            ("f/conv2d_1/convolution2", "conv2d"),
            ("f/conv2d_1_2/convolution2", "conv2d_1"),
            ("outer_1/inner_1/conv2d_3/BiasAdd", "conv2d"),
            ("probabilities", None),
            ("f/unknown_1/Relu", None),
            ("", None),
        ],
    )
    def test_scopes_that_carry_a_number(self, tensor, layer):
        assert layer_of(tensor, self.names) == layer

    def test_scopes_that_are_layers_names_as_they_are(self):
        assert layer_of("f/conv2d_1/convolution2", self.names, numbered=False) == "conv2d_1"
        assert layer_of("f/conv2d/convolution2", self.names, numbered=False) == "conv2d"

    @given(st.text(), st.booleans())
    def test_any_text_names_a_layer_or_none(self, text, numbered):
        assert layer_of(text, self.names, numbered=numbered) in {*self.names, None}


def float_file(model, preprocessing=None):
    network = SourceNetwork(model, preprocessing or model.preprocessing)
    return network, tflite.convert(network, export.SCHEMES["float32"], None)


def warmed(model):
    """Gives batch normalization the statistics that a first training step would give."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(np.random.default_rng(0).uniform(-1, 1, (8, *model.input_shape[1:])), training=True)
    return model


def noise(count, shape):
    return np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)


def of_row(name):
    row = keras_resnet.get_architecture(name)
    stages = len(row.blocks)
    small = row.replace(name="small", blocks=(1,) * stages, widths=(8, 16, 32, 64)[:stages])
    return lambda: keras_resnet.create_model(small, input_shape=(64, 64, 3), classes=10)


def of_others():
    return keras.applications.MobileNetV2(
        input_shape=(32, 32, 3), weights=None, alpha=0.35, classes=10
    )


@pytest.mark.parametrize(
    "build",
    [of_row("resnet20"), of_row("resnet50"), of_row("resnet50_preact"), of_others],
    ids=["resnet20", "resnet50", "pre-activation", "keras.applications"],
)
def test_every_layer_with_weights_is_measured_under_its_own_name(build):
    keras.utils.set_random_seed(0)
    model = warmed(build())
    network, exact = float_file(model, Preprocessing(mean=(120.0,), std=(60.0,)))
    images = noise(4, network.shape)
    errors = compare_layers(exact, quantize(exact, images), images, layer_names(model))
    named = {error.layer for error in errors}
    with_weights = keras.layers.Conv2D | keras.layers.DepthwiseConv2D
    assert named >= {layer.name for layer in model.layers if isinstance(layer, with_weights)}
    own = [error.own_sqnr_db for error in errors]
    assert own == sorted(own)
    # A layer that was matched with another would have no more signal than noise.
    assert min(own) > 10
    in_file = {tensor.name for tensor in read_graph(exact).tensors}
    assert {tensor for error in errors for tensor in error.tensors} <= in_file


@pytest.fixture(scope="module")
def plain():
    """A trained network of convolutions in a row: a single broken one breaks it all."""
    keras.utils.set_random_seed(0)
    model = keras_resnet.create_model(TINY.replace(name="plain", shortcut="none"))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    images, labels = paint(256, seed=0)
    model.fit(model.preprocessing(images), labels, batch_size=32, epochs=5, verbose=0)
    return model


def with_a_bad_layer(model):
    """The same outputs, and weights that 8 bits cannot hold in one convolution.

    One of its input channels is made to carry nothing, so its weights for that channel may be
    anything: they are made so large that all others round to nothing.
    """
    model = reload(model)
    norm, conv = (model.get_layer(f"stage3_block1_{name}") for name in ("norm1", "conv2"))
    gamma, beta, *statistics = norm.get_weights()
    gamma[0] = beta[0] = 0
    norm.set_weights([gamma, beta, *statistics])
    (kernel,) = conv.get_weights()
    kernel[:, :, 0] = 1000 * np.abs(kernel).max()
    conv.set_weights([kernel])
    return model


def with_a_bad_pair(model):
    """The same outputs, with one channel a thousand times as large between two convolutions."""
    model = reload(model)
    norm, conv = (model.get_layer(f"stage3_block1_{name}") for name in ("norm1", "conv2"))
    gamma, beta, *statistics = norm.get_weights()
    gamma[1], beta[1] = 1000 * gamma[1], 1000 * beta[1]
    norm.set_weights([gamma, beta, *statistics])
    (kernel,) = conv.get_weights()
    kernel[:, :, 1] /= 1000
    conv.set_weights([kernel])
    return model


class Bench:
    """A network, its files, and the verdict on them."""

    def __init__(self, model, max_drop=0.01):
        self.network, self.exact = float_file(model)
        self.images, self.labels = paint(96, seed=9)
        self.names = layer_names(model)
        self.max_drop = max_drop
        self.made = []

    def requantize(self, kept=()):
        self.made.append(kept)
        return quantize(self.exact, self.images[:32], keep_float=kept)

    def check(self, content, kept=()):
        run = Runner(content)
        return judge(
            "int8",
            real_scheme(read_graph(content), kept),
            compare(self.network.predict(self.images[:32]), run(self.images[:32])),
            compare_accuracy(
                self.network.predict, run, [(self.images, self.labels)], self.max_drop
            ),
        )

    def layers(self, content):
        return compare_layers(self.exact, content, self.images[:8], self.names)

    def repair(self, content):
        return repair(
            content, self.check(content), self.layers(content), self.requantize, self.check
        )


@pytest.fixture(scope="module")
def broken(plain):
    return Bench(with_a_bad_layer(plain))


class TestComparison:
    def test_the_layer_that_loses_is_the_worst_and_the_others_are_cleared(self, broken):
        errors = broken.layers(broken.requantize())
        assert errors[0].layer == "stage3_block1_conv2"
        assert errors[0].own_sqnr_db < 3
        assert all(error.own_sqnr_db > 20 for error in errors[1:])
        behind = next(error for error in errors if error.layer == "logits")
        assert behind.sqnr_db < 10 < behind.own_sqnr_db

    def test_a_large_channel_does_not_hide_that_the_small_ones_are_lost(self, plain):
        bench = Bench(with_a_bad_pair(plain))
        errors = bench.layers(bench.requantize())
        assert {error.layer for error in errors[:2]} == {
            "stage3_block1_conv1",
            "stage3_block1_conv2",
        }
        assert all(error.own_sqnr_db < 12 for error in errors[:2])
        assert all(error.own_sqnr_db > 20 for error in errors[2:])

    def test_values_beyond_the_range_are_counted(self, plain):
        bench = Bench(plain)
        dark = quantize(bench.exact, bench.images[:8] // 8)
        saturated = {error.layer: error.saturation for error in bench.layers(dark)}
        assert saturated["stem_conv"] > 0.02
        bright = {error.layer: error.saturation for error in bench.layers(bench.requantize())}
        assert bright["stem_conv"] < 0.001

    def test_a_file_is_like_itself(self, broken):
        errors = broken.layers(broken.exact)
        assert {error.own_sqnr_db for error in errors} == {120.0}
        assert {error.sqnr_db for error in errors} == {120.0}

    def test_16_bits_lose_less_than_8(self, plain):
        bench = Bench(plain)
        wide = quantize(bench.exact, bench.images[:32], "int16x8", source="float32")
        eight = {error.layer: error.sqnr_db for error in bench.layers(bench.requantize())}
        sixteen = {error.layer: error.sqnr_db for error in bench.layers(wide)}
        convolutions = [layer for layer in eight if "conv" in layer]
        assert len(convolutions) == 7
        assert all(sixteen[layer] > eight[layer] for layer in convolutions)

    @pytest.mark.parametrize("scheme", ["float16", "dynamic_int8"])
    def test_every_scheme_can_be_compared(self, plain, scheme):
        bench = Bench(plain)
        content = tflite.convert(bench.network, export.SCHEMES[scheme], None)
        layers = {error.layer: error for error in bench.layers(content)}
        assert {"stem_conv", "stage4_block1_conv2", "logits"} <= set(layers)
        # Halves have 11 significant bits; these kernels are too small to be stored in 8 bits.
        assert min(error.own_sqnr_db for error in layers.values()) > 60
        assert layers["logits"].saturation == 0

    def test_files_of_different_networks_are_refused(self, broken):
        inputs = keras.Input((32, 32, 3))
        x = keras.layers.Conv2D(2, 3, name="other")(inputs)
        x = keras.layers.GlobalMaxPooling2D()(x)
        model = keras.Model(inputs, keras.layers.Dense(7, activation="softmax")(x))
        _, content = float_file(model, Preprocessing())
        with pytest.raises(ValueError, match="same network"):
            compare_layers(broken.exact, content, broken.images, broken.names)

    def test_no_images_are_refused(self, broken):
        with pytest.raises(ValueError, match="batch of 1 at least"):
            compare_layers(broken.exact, broken.exact, broken.images[:0], broken.names)

    def test_the_table_and_the_pictures(self, broken, tmp_path):
        errors = broken.layers(broken.requantize())
        head, first, *_ = table(errors)
        assert head.split()[:2] == ["layer", "operator"]
        assert first.startswith("stage3_block1_conv2")
        odd = dataclasses.replace(errors[0], layer="$a_{<b>&")
        for _ in range(2):
            draw([odd, *errors], tmp_path / "layers.svg")
            svg = (tmp_path / "layers.svg").read_bytes()
            draw(errors, tmp_path / "layers.png")
        ET.fromstring(svg)
        draw([odd, *errors], tmp_path / "again.svg")
        assert (tmp_path / "again.svg").read_bytes() == svg
        width, height = Image.open(tmp_path / "layers.png").size
        assert min(width, height) > 100


def error(layer, db, *tensors):
    return LayerError(layer=layer, operator="CONV_2D", tensors=tensors or (f"{layer}/out",),
                      own_sqnr_db=db, sqnr_db=db, saturation=0.0)  # fmt: skip


PARITY = Parity(images=1, max_difference=0.0, total_variation=0.0, top1_agreement=1.0)


def search(order, needed, monkeypatch):
    """What a repair finds when a file passes with all `needed` layers in float."""
    monkeypatch.setattr("keras_resnet.export.repair._slowdown", lambda before, after: 1.0)
    asked = []

    def check(content, kept):
        asked.append(kept)
        passes = {f"{layer}/out" for layer in needed} <= set(kept)
        return Verification(scheme="int8", parity=PARITY, problems=() if passes else ("bad",))

    before = Verification(scheme="int8", parity=PARITY, problems=("bad",))
    ranking = [error(layer, db) for db, layer in enumerate(order)]
    return repair(b"...", before, ranking, lambda kept: "|".join(kept).encode(), check), asked


class TestSearch:
    @pytest.mark.parametrize("needed", ["a", "d", "p", "ab", "ap", "bfk", "nop"])
    def test_exactly_the_needed_layers_are_found(self, needed, monkeypatch):
        (content, report), _ = search("abcdefghijklmnop", needed, monkeypatch)
        assert sorted(report.repair.layers) == sorted(needed)
        assert sorted(content.decode().split("|")) == sorted(f"{name}/out" for name in needed)
        assert report.passed

    def test_no_file_is_made_twice_and_few_are_made_when_the_ranking_is_right(self, monkeypatch):
        (_, report), asked = search("abcdefghijklmnop", "abc", monkeypatch)
        # The one that is handed out is checked once more at the end, so that what the caller
        # remembers of the last check is of that file.
        *searched, last = asked
        assert len(searched) == len(set(searched)) == report.repair.tried <= 8
        assert last == report.repair.tensors

    def test_what_quantization_is_not_to_blame_for_is_not_repaired(self, monkeypatch):
        (content, report), asked = search("abcd", ["elsewhere"], monkeypatch)
        assert content == b"..."
        assert not report.passed
        assert report.repair is None
        assert "not in the rounding of these layers" in report.problems[-1]
        assert len(asked) <= 5
        assert asked[-1] == ()

    def test_layers_that_lose_nothing_are_not_tried(self, monkeypatch):
        monkeypatch.setattr("keras_resnet.export.repair._slowdown", lambda before, after: 1.0)
        before = Verification(scheme="int8", parity=PARITY, problems=("bad",))
        ranking = [error("a", 30.0), error("exact", 120.0)]
        asked = []
        repair(b"", before, ranking, lambda kept: b"", lambda _, kept: asked.append(kept) or before)
        assert asked == [("a/out",), ()]

    def test_both_operators_of_a_layer_stay_in_float_together(self, monkeypatch):
        monkeypatch.setattr("keras_resnet.export.repair._slowdown", lambda before, after: 1.0)
        after = Verification(scheme="int8", parity=PARITY)
        before = dataclasses.replace(after, problems=("bad",))
        ranking = [error("norm", 1.0, "mul", "mul/pad"), error("b", 2.0), error("norm", 3.0, "add")]
        _, report = repair(b"", before, ranking, lambda kept: b"", lambda content, kept: after)
        assert report.repair.layers == ("norm",)
        assert report.repair.tensors == ("mul", "mul/pad", "add")


class TestRepair:
    def test_exactly_the_bad_layer_stays_in_float(self, broken):
        content = broken.requantize()
        before = broken.check(content)
        assert not before.passed
        assert before.accuracy.drop > 0.3
        repaired, report = broken.repair(content)
        assert report.passed
        assert report.repair.layers == ("stage3_block1_conv2",)
        assert report.repair.drop_before == before.accuracy.drop
        assert report.repair.drop_after == report.accuracy.drop <= 0.01
        assert report.repair.bytes_after == len(repaired) > len(content)
        assert report.repair.slowdown > 0
        assert "stage3_block1_conv2" in str(report)
        assert "1 of" in report.warnings[-1]
        floats = [
            operator.name
            for operator in read_graph(repaired).operators
            if operator.name == "CONV_2D"
            and read_graph(repaired).tensors[operator.outputs[0]].dtype == "float32"
        ]
        assert len(floats) == 1

    def test_an_outlier_between_two_layers_takes_no_other_layers(self, plain):
        bench = Bench(with_a_bad_pair(plain), max_drop=0.0)
        content = bench.requantize()
        if bench.check(content).passed:
            pytest.fail("the fault that was put into the network does no harm")
        _, report = bench.repair(content)
        assert set(report.repair.layers) <= {"stage3_block1_conv1", "stage3_block1_conv2"}


@pytest.mark.filterwarnings("ignore:the images look like noise")
class TestExport:
    def test_a_repaired_bundle_says_so_and_verifies(self, plain, tmp_path):
        model, images = with_a_bad_layer(plain), paint(64, seed=3)[0]
        with pytest.raises(export.ExportRejected) as rejection:
            export.to_tflite(model, tmp_path / "b", calibration=images, layers=True)
        assert rejection.value.report.layers[0].layer == "stage3_block1_conv2"
        assert "stage3_block1_conv2" in (tmp_path / "b.rejected.html").read_text()
        assert not (tmp_path / "b").exists()

        bundle = export.to_tflite(model, tmp_path / "b", calibration=images, repair=True)
        recorded = bundle.verification
        assert recorded.passed
        assert recorded.repair.layers == ("stage3_block1_conv2",)
        assert "slowdown" not in bundle.manifest["verification"]["repair"]
        assert "1 layer stays in float32" in (bundle.path / "report.html").read_text()
        assert read_graph(bundle.model_path).scheme == "mixed"
        assert export.verify(bundle.path).passed
        assert not (tmp_path / "b.rejected.html").exists()
