"""All schemes, for all families, in every form that a file can have."""

import functools
from pathlib import Path

import keras
import numpy as np
import pytest
from families import FAMILIES, FLOAT_ONLY, exports, images, row
from toys import SMALL, warmed

import keras_resnet
from keras_resnet import data, export
from keras_resnet.export import SCHEMES, conversion, quantizer
from keras_resnet.export.calibration import Calibration, CalibrationWarning, choose
from keras_resnet.export.flatbuffer import pack, unpack, with_all_outputs
from keras_resnet.export.inspection import read_graph
from keras_resnet.export.runtime import Runner
from keras_resnet.export.source import SourceNetwork
from keras_resnet.preprocessing import Preprocessing

PAGE = Path(__file__).parent.parent / "docs" / "schemes.md"
CIFAR = (32, 32, 3)
POSSIBLE = [
    (family, scheme)
    for family in FAMILIES
    for scheme in SCHEMES
    if not (family in FLOAT_ONLY and SCHEMES[scheme].is_calibrated)
]


@pytest.mark.parametrize(("family", "scheme"), POSSIBLE)
def test_every_family_passes_in_every_scheme(family, scheme):
    verdict = exports(family).verdict(scheme)
    assert verdict.passed, str(verdict)
    names = {operator.name for operator in read_graph(exports(family).file(scheme)).operators}
    assert "CUSTOM" not in names


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_says_how_xnnpack_runs_them(family):
    assert row(family) in PAGE.read_text(encoding="utf-8"), "not current: make generate"


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in FLOAT_ONLY])
def test_batch_normalization_is_folded(family):
    """What a pre-activation network normalizes before it convolves is a product with constants."""
    names = [operator.name for operator in read_graph(exports(family).file("int8")).operators]
    assert not {"RSQRT", "DIV", "SUB"} & set(names)


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return warmed(keras_resnet.create_model(SMALL))


@pytest.fixture(scope="module")
def network(small):
    return SourceNetwork(small, small.preprocessing)


@pytest.fixture(scope="module")
def features():
    keras.utils.set_random_seed(0)
    model = warmed(keras_resnet.feature_model(SMALL, input_shape=CIFAR))
    return SourceNetwork(model, model.preprocessing, "features")


@pytest.fixture(scope="module")
def logits(small):
    return SourceNetwork(small, small.preprocessing, "logits")


NOISE = Calibration(images(16, CIFAR), "noise")
PIXELS = images(6, CIFAR)[::-1]


def convert(network, scheme, **options):
    return conversion.convert(network, SCHEMES[scheme], NOISE, **options)


@pytest.fixture(scope="module")
def alone(network):
    """The probabilities of the images, one by one, from the file in a scheme."""
    return functools.cache(lambda scheme: Runner(convert(network, scheme))(PIXELS))


class TestBatch:
    @pytest.mark.parametrize(
        ("batch", "scheme"),
        [*(("dynamic", scheme) for scheme in SCHEMES), (4, "float32"), (4, "int8")],
    )
    def test_images_in_a_batch_are_classified_as_alone(self, network, alone, scheme, batch):
        runner = Runner(convert(network, scheme, batch=batch))
        expected = -1 if batch == "dynamic" else batch
        assert runner.interpreter.get_input_details()[0]["shape_signature"][0] == expected
        np.testing.assert_allclose(runner(PIXELS), alone(scheme), atol=2e-3)

    @pytest.mark.parametrize("batch", [0, -1, 1.0, True, "many", None])
    def test_what_is_no_batch_size_is_refused(self, network, batch):
        with pytest.raises(ValueError, match="`batch` must be a positive integer or 'dynamic'"):
            convert(network, "float32", batch=batch)


class TestEnds:
    @pytest.mark.parametrize(
        ("io", "source", "target"),
        [
            ("auto", np.uint8, np.float32),
            ("uint8", np.uint8, np.uint8),
            ("int8", np.int8, np.int8),
            ("float32", np.float32, np.float32),
        ],
    )
    def test_io_sets_the_types_and_not_the_answers(self, network, io, source, target):
        runner = Runner(convert(network, "int8", io=io))
        (taken,) = runner.interpreter.get_input_details()
        (given,) = runner.interpreter.get_output_details()
        assert (taken["dtype"], given["dtype"]) == (source, target)
        if target != np.float32:
            zero_point = 0 if target == np.uint8 else -128
            assert given["quantization"] == (1 / 256, zero_point)
        expected = network.predict(PIXELS)
        assert np.abs(runner(PIXELS) - expected).max() < 0.05

    @pytest.mark.parametrize("scheme", ["float32", "float16", "dynamic_int8", "int16x8"])
    def test_other_schemes_have_float_ends_alone(self, network, scheme):
        with pytest.raises(ValueError, match=f"Files in {scheme} take and give float32"):
            convert(network, scheme, io="uint8")
        with pytest.raises(ValueError, match="`io` must be one of"):
            convert(network, scheme, io="int4")

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_logits_rank_as_probabilities_do(self, logits, alone, scheme):
        runner = Runner(convert(logits, scheme))
        assert runner.outputs == ("logits",)
        scores = runner(PIXELS).astype(np.float64)
        powers = np.exp(scores)
        actual = powers / powers.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(actual, alone(scheme), atol=1e-3)

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_features_come_out_under_their_names(self, features, scheme):
        runner = Runner(convert(features, scheme))
        assert runner.outputs == ("C2", "C3", "C4")
        expected, actual = features.predict(PIXELS), runner(PIXELS)
        for name in runner.outputs:
            error = np.sqrt(np.square(expected[name] - actual[name]).mean())
            assert error < 0.05 * expected[name].std(), name

    def test_a_network_without_a_top_gives_a_map_or_an_embedding(self, tmp_path):
        for pooling, name in ((None, "features"), ("avg", "embedding")):
            model = warmed(
                keras_resnet.create_model(
                    SMALL, include_top=False, pooling=pooling, input_shape=CIFAR
                )
            )
            bundle = export.to_tflite(model, tmp_path / name, "float32", outputs="features")
            assert bundle.outputs == (name,)
            assert export.verify(bundle).passed

    @pytest.mark.parametrize("nest", [lambda x: {"a": {"b": x}}, lambda x: [[x], x]])
    def test_nested_outputs_are_refused(self, nest, tmp_path):
        image = keras.Input(CIFAR)
        model = keras.Model(image, nest(keras.layers.Conv2D(2, 1)(image)))
        with pytest.raises(ValueError, match=r"a list or a dictionary of tensors\. Received"):
            export.to_tflite(
                model, tmp_path / "b", outputs="features", preprocessing=Preprocessing()
            )

    def test_features_have_no_accuracy(self, small, tmp_path):
        with pytest.raises(ValueError, match="`evaluation` is for classifiers"):
            export.to_tflite(small, tmp_path / "b", outputs="features", evaluation="digits")
        with pytest.raises(ValueError, match="`outputs` must be one of"):
            export.to_tflite(small, tmp_path / "b", outputs="maps")


@pytest.mark.parametrize("scheme", ["float16", "int8"])
def test_the_same_network_gives_the_same_bytes_also_from_disk(small, scheme, tmp_path):
    small.save(tmp_path / "small.keras")
    again = keras_resnet.load_model(tmp_path / "small.keras")
    files = []
    for name, model in (("a", small), ("b", again), ("c", small)):
        bundle = export.to_tflite(model, tmp_path / name, scheme, calibration=pictures(30))
        files.append({file.name: file.read_bytes() for file in bundle.path.iterdir()})
    assert files[0] == files[1] == files[2]


def test_networks_of_keras_applications_are_exported():
    keras.utils.set_random_seed(0)
    model = warmed(keras.applications.MobileNetV2(weights=None, input_shape=CIFAR, classes=10))
    source = SourceNetwork(model, Preprocessing.named("tf"))
    expected = source.predict(PIXELS)
    for scheme, limit in {"float32": 1e-4, "int8": 0.35}.items():  # untrained, and deep
        content = convert(source, scheme)
        assert read_graph(content).scheme == scheme
        assert np.abs(Runner(content)(PIXELS) - expected).sum(axis=1).mean() / 2 < limit


def test_an_operation_that_tflite_lacks_is_refused_by_name():
    inputs = keras.Input(CIFAR)
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    x = keras.ops.erfinv(keras.ops.tanh(x))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    with pytest.raises(ValueError, match=r"no operator for.*[Ee]rfinv"):
        convert(SourceNetwork(model, Preprocessing()), "float32")


@pytest.fixture(scope="module")
def float_file(network):
    return convert(network, "float32")


class TestQuantizer:
    def test_every_intermediate_is_given_and_none_is_changed(self, float_file):
        content, names = with_all_outputs(float_file)
        runner = Runner(content)
        assert len(names) == len(runner.outputs) > 10
        np.testing.assert_array_equal(runner(PIXELS)["probabilities"], Runner(float_file)(PIXELS))
        assert pack(unpack(float_file)) == float_file

    def test_layers_can_stay_in_float(self, float_file, network):
        graph = read_graph(float_file)
        names = [graph.tensors[op.outputs[0]].name for op in graph.operators]
        convolutions = [
            n for n, op in zip(names, graph.operators, strict=True) if "CONV" in op.name
        ]
        everything = quantizer.quantize(float_file, NOISE.images, keep_float=names)
        np.testing.assert_allclose(Runner(everything)(PIXELS), network.predict(PIXELS), atol=1e-5)
        some = read_graph(quantizer.quantize(float_file, NOISE.images, keep_float=convolutions[:2]))
        in_float = {
            some.tensors[op.outputs[0]].name
            for op in some.operators
            if op.name == "CONV_2D" and some.tensors[op.outputs[0]].dtype == "float32"
        }
        assert in_float == set(convolutions[:2])
        assert some.scheme == "mixed"

    def test_classes_do_not_tie_where_float32_comes_out(self, float_file):
        """Eight bits tell 256 logits apart, and so give classes the same probability."""
        images = np.random.default_rng(0).integers(0, 256, (200, *CIFAR), np.uint8)
        floating = quantizer.quantize(float_file, NOISE.images)
        integers = quantizer.quantize(float_file, NOISE.images, target="int8")
        assert read_graph(floating).scheme == read_graph(integers).scheme == "int8"
        assert len(floating) < len(integers) + 500
        exact, ties = Runner(float_file)(images), []
        for content in (floating, integers):
            given = np.sort(Runner(content)(images).astype(np.float32))
            ties.append(np.count_nonzero(given[:, -1] == given[:, -2]))
        assert ties[0] == 0 < ties[1]
        np.testing.assert_allclose(Runner(floating)(images), exact, atol=0.02)

    def test_a_dense_layer_can_stay_in_float(self, float_file):
        name = read_graph(float_file).operators[-2].outputs[0]
        name = read_graph(float_file).tensors[name].name
        graph = read_graph(quantizer.quantize(float_file, NOISE.images, keep_float=[name]))
        (dense,) = [op for op in graph.operators if op.name == "FULLY_CONNECTED"]
        assert graph.tensors[dense.inputs[1]].dtype == "float32"
        assert graph.scheme == "mixed"

    def test_dead_channels_and_constant_tensors_are_quantized(self, float_file):
        """Images of one value leave tensors without any range."""
        content = quantizer.quantize(float_file, np.zeros((2, *CIFAR), np.uint8))
        assert np.isfinite(Runner(content)(PIXELS)).all()

    def test_corrected_biases_take_off_the_mean_error(self, small):
        """With weights that are all rounded down, every output is too small without it."""
        inputs = keras.Input(CIFAR)
        x = keras.layers.Conv2D(4, 3, padding="valid", name="conv")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
        kernel = np.full((3, 3, 3, 4), 0.4 / 127, np.float32)
        kernel[0, 0, 0] = 1  # the step is 1 / 127, so that 0.4 steps become 0
        model.get_layer("conv").set_weights([kernel, np.zeros(4, np.float32)])
        source = SourceNetwork(model, Preprocessing(mean=0.0, std=255.0))
        float_file = convert(source, "float32")
        errors = {}
        for correct in (False, True):
            content = quantizer.quantize(float_file, NOISE.images, correct_bias=correct)
            exact, actual = (self.first_map(file) for file in (float_file, content))
            errors[correct] = abs(float((actual - exact).mean()))
        assert errors[False] > 0.03
        assert errors[True] < 0.005

    def first_map(self, content):
        graph = read_graph(content)
        number = next(op for op in graph.operators if op.name == "CONV_2D").outputs[0]
        runner = Runner(with_all_outputs(content)[0])
        runner(PIXELS[:1])
        detail = next(d for d in runner.interpreter.get_output_details() if d["index"] == number)
        return runner._as_numbers(detail)

    def test_averages_are_taken_by_convolutions_that_xnnpack_knows(self):
        file = exports("ResNet-D").file("int8")
        names = [operator.name for operator in read_graph(file).operators]
        assert "AVERAGE_POOL_2D" not in names
        assert names.count("DEPTHWISE_CONV_2D") == 3


def pictures(count, seed=0):
    """Smooth images, as a camera makes them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


class TestCalibration:
    def chosen(self, images, count=100):
        return choose(images, CIFAR, Preprocessing(), count)

    @pytest.mark.parametrize(
        ("calibration", "words"),
        [
            (pictures(30) / 255, r"dtype=float64.*values 0\.\.1; they look normalized"),
            (pictures(30).astype("f4") / 128 - 1, "they look normalized"),
            (pictures(30).astype(int) * 3, "pixels end at 255"),
            (pictures(30).astype(int), r"convert them with astype\('uint8'\)"),
            (np.round(pictures(30) / 255).astype("u1"), r"values 0\.\.1, as pixels between 0"),
            (np.full((30, *CIFAR), 7, np.uint8), "30 of 30 images of one color"),
            (pictures(30)[0], r"shape=\(32, 32, 3\)"),
            (pictures(30)[:0], r"shape=\(0, 32, 32, 3\)"),
            (None, "must be a data source"),
        ],
    )
    def test_what_cannot_be_raw_images_is_refused(self, calibration, words):
        with pytest.raises(ValueError, match=words):
            self.chosen(calibration)

    @pytest.mark.parametrize(
        ("calibration", "words"),
        [
            (pictures(10), "10 calibration images; under 25"),
            (pictures(10).repeat(10, axis=0), "of which 10 are different"),
            (images(30, CIFAR), "look like noise"),
            (120 + pictures(30) // 32, "lie close together"),
        ],
    )
    def test_what_looks_wrong_is_said(self, calibration, words):
        (warning,) = self.chosen(calibration).warnings
        assert words in warning

    def test_photographs_pass(self):
        assert self.chosen(pictures(30)).warnings == ()
        assert self.chosen("digits").warnings == ()

    def test_one_class_alone_is_said(self):
        twice = (pictures(60), np.zeros(60, int))
        source = data.from_arrays(twice, twice, ("a", "b"))
        (warning,) = self.chosen(source).warnings
        assert "all images are of one class" in warning

    def test_images_that_are_evaluated_on_are_noticed(self, small, tmp_path):
        labels = np.arange(40) % 10
        source = data.from_arrays(
            (pictures(40), labels), (pictures(40, seed=1), labels), tuple("0123456789")
        )
        for split, words in (
            (source.test, "40 of 40 calibration images are evaluation"),
            (source.train, ""),
        ):
            arguments = {"calibration": split, "evaluation": source, "max_drop": 1.0, "force": True}
            if words:
                with pytest.warns(CalibrationWarning, match=words):
                    bundle = export.to_tflite(small, tmp_path / "b", **arguments)
            else:
                bundle = export.to_tflite(small, tmp_path / "b", **arguments)
            told = " ".join(bundle.manifest["verification"]["warnings"])
            assert ("evaluation images as well" in told) == bool(words)

    def test_the_manifest_says_how(self, small, tmp_path):
        bundle = export.to_tflite(small, tmp_path / "b", calibration=pictures(30))
        noted = bundle.manifest["calibration"]
        assert (noted["source"], noted["images"]) == ("array", 30)
        assert noted["method"] == quantizer.METHOD
        assert noted["sha256"] == Calibration(pictures(30), "array").digest
