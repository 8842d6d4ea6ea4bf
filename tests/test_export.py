"""Exported files are the networks that they came from, or there are none."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import BuiltinOperator
from families import of_family
from PIL import Image
from processes import run_python
from toys import SMALL, warmed

import keras_resnet
from keras_resnet import data, export, training
from keras_resnet.export import flatbuffer, tflite
from keras_resnet.export.calibration import Calibration
from keras_resnet.export.inspection import Operator, read_graph
from keras_resnet.export.runtime import Runner
from keras_resnet.export.source import SourceNetwork
from keras_resnet.preprocessing import Preprocessing

SHAPE = (32, 32, 3)
IMAGENET = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
CAFFE = Preprocessing(mean=(103.939, 116.779, 123.68), std=(1.0,), channels="bgr")
# The ranges of hardly anything but grey fit no other images.
GREY = np.random.default_rng(2).integers(124, 133, (4, *SHAPE), np.uint8)
# Most tests calibrate with a few images of noise, which is noticed.
pytestmark = pytest.mark.filterwarnings(
    "ignore::keras_resnet.export.calibration.CalibrationWarning"
)


def images(count: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def trained(digits):
    recipe = training.get_recipe("digits").replace(epochs=12)
    return training.fit(
        lambda: keras_resnet.create_model(SMALL, class_names=digits.class_names),
        digits,
        recipe,
        verbose=False,
    ).model


@pytest.fixture(scope="module")
def bundles(trained, digits, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    return {
        scheme: export.to_tflite(
            trained, root / scheme, scheme, calibration=digits, evaluation=digits
        )
        for scheme in export.SCHEMES
    }


def keras_probabilities(model, pixels, preprocessing=None):
    return model.predict_on_batch((preprocessing or model.preprocessing)(pixels))


@pytest.mark.parametrize("scheme", list(export.SCHEMES))
class TestEveryScheme:
    def test_the_scheme_is_proved_from_the_file(self, bundles, scheme):
        assert read_graph(bundles[scheme].model_path).scheme == scheme
        assert bundles[scheme].scheme == scheme

    def test_the_file_takes_raw_pixels_and_gives_float_probabilities(self, bundles, scheme):
        runner = Runner(bundles[scheme].model_path)
        (source,) = runner.interpreter.get_input_details()
        (target,) = runner.interpreter.get_output_details()
        assert tuple(source["shape"]) == (1, 32, 32, 3)
        assert source["dtype"] == (np.uint8 if scheme == "int8" else np.float32)
        assert tuple(target["shape"]) == (1, 10)
        assert target["dtype"] == np.float32
        np.testing.assert_allclose(runner(images(4)).sum(axis=1), 1, atol=1e-5)

    def test_its_ends_have_names(self, bundles, scheme):
        runner = Runner(bundles[scheme].model_path)
        assert runner.interpreter.get_signature_list() == {
            "serving_default": {"inputs": ["pixels"], "outputs": ["probabilities"]}
        }

    def test_it_agrees_with_the_keras_model(self, bundles, scheme, trained, digits):
        pixels, _ = digits.test.take(64, SHAPE, Preprocessing(), seed=5)
        expected = keras_probabilities(trained, pixels)
        actual = export.Classifier(bundles[scheme].path).probabilities(pixels)
        moved = np.abs(expected - actual).sum(axis=1).mean() / 2
        assert moved <= {"float32": 1e-5, "float16": 1e-3}.get(scheme, 0.03)

    def test_the_manifest_tells_what_was_measured(self, bundles, scheme, trained, digits):
        manifest = json.loads((bundles[scheme].path / "manifest.json").read_text())
        accuracy = manifest["verification"]["accuracy"]
        measured = training.evaluate(trained, digits)
        assert accuracy["examples"] == measured.examples == 355
        assert accuracy["source_correct"] == measured.correct
        pixels, labels = digits.test.take(355, SHAPE, Preprocessing())
        named = export.Classifier(bundles[scheme].path).probabilities(pixels).argmax(axis=1)
        assert accuracy["exported_correct"] == (named == labels).sum()
        assert (
            accuracy["source_correct"] - accuracy["only_source_correct"]
            == accuracy["exported_correct"] - accuracy["only_exported_correct"]
        )

    def test_the_golden_vectors_are_the_source_models(self, bundles, scheme, trained):
        inputs, expected = bundles[scheme].golden()
        assert inputs.shape == (32, *SHAPE)
        np.testing.assert_allclose(expected, keras_probabilities(trained, inputs), atol=1e-5)

    def test_it_verifies_again(self, bundles, scheme):
        assert export.verify(bundles[scheme].path).passed

    def test_no_operator_needs_flex(self, bundles, scheme):
        names = {op.name for op in read_graph(bundles[scheme].model_path).operators}
        assert "CUSTOM" not in names


def delegates(file):
    """Delegate partitions of a file under XNNPACK: (input tensors, output tensors) of each."""
    interpreter = Runner(file).interpreter
    return [
        (set(map(int, op["inputs"])), set(map(int, op["outputs"])))
        for op in interpreter._get_ops_details()
        if op["op_name"] == "DELEGATE"
    ]


# Shallow, deep, without shortcuts, and with bottlenecks; other families are in test_schemes.py.
INT8_NETWORKS = ["resnet8", "plain20", "resnet20", "resnet56", "resnet50"]


@pytest.fixture(scope="module", params=INT8_NETWORKS)
def int8_file(request):
    model = warmed(keras_resnet.create_model(request.param))
    network = SourceNetwork(model, model.preprocessing)
    samples = Calibration(images(2, network.shape), "noise")
    return tflite.convert(network, export.SCHEMES["int8"], samples)


class TestInt8Graph:
    def test_all_is_8_bit_up_to_the_features_in_one_partition(self, int8_file):
        graph = read_graph(int8_file)
        names = [op.name for op in graph.operators]
        behind = names.index("DEQUANTIZE")
        assert names[behind:] == ["DEQUANTIZE", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]
        to_features, classifier = graph.operators[:behind], graph.operators[behind:]
        weights = [graph.tensors[i].dtype for i in classifier[2].inputs[1:]]
        assert weights == ["int8", "float32"]
        tensors = {i for op in to_features for i in (*op.inputs, *op.outputs) if i >= 0}
        dtypes = {}
        for i in tensors:
            tensor = graph.tensors[i]
            dtypes.setdefault(tensor.dtype, []).append(tensor)
        # 32-bit integers are biases, or the arguments of PAD.
        assert set(dtypes) == {"uint8", "int8", "int32"}
        assert [t.index for t in dtypes["uint8"]] == list(graph.inputs)
        assert all(t.is_constant for t in dtypes["int32"])
        biases = {op.inputs[2] for op in to_features if op.name.endswith("CONV_2D")}
        arguments = {op.inputs[1] for op in to_features if op.name == "PAD"}
        assert {t.index for t in dtypes["int32"]} <= biases | arguments

        # The one partition takes the pixels (as they are, or behind QUANTIZE, which moves the zero
        # from 128 to 0) and reaches the scores.
        ((inputs, outputs),) = delegates(int8_file)
        pixels = graph.inputs[0]
        after = {graph.operators[0].outputs[0]} if graph.operators[0].name == "QUANTIZE" else set()
        assert inputs & ({pixels} | after)
        assert outputs <= {op.outputs[0] for op in classifier[-2:]}

    def test_batch_normalization_is_folded_into_the_convolutions(self, int8_file):
        graph = read_graph(int8_file)
        names = {op.name for op in graph.operators}
        assert not names & {"MUL", "SUB", "DIV", "RSQRT"}


def test_group_normalization_has_no_8_bit_form_and_is_refused(tmp_path):
    model = of_family("group normalization")
    with pytest.raises(export.ExportRejected, match="claims the scheme int8 and is really mixed"):
        export.to_tflite(model, tmp_path / "b", "int8", calibration=images(16, (64, 64, 3)))
    assert not (tmp_path / "b").exists()


def test_variables_of_others_that_wait_for_their_values_stay_out_of_the_file():
    model = keras_resnet.create_model(SMALL)
    network = SourceNetwork(model, model.preprocessing)
    given = []
    with keras.StatelessScope(initialize_variables=False):
        keras.Variable(lambda shape, dtype: given.append(shape) or np.zeros(shape), shape=(7,))
    tflite.convert(network, export.SCHEMES["float32"], None)
    assert not given


class TestRawBytes:
    def test_the_byte_is_the_input_tensor_with_the_default_preprocessing(self, bundles):
        graph = read_graph(bundles["int8"].model_path)
        source = graph.tensors[graph.inputs[0]]
        assert (source.scale, source.zero_point) == ((1.0,), (128,))
        first, second = graph.operators[:2]
        assert (first.name, second.name) == ("QUANTIZE", "CONV_2D")
        shifted = graph.tensors[first.outputs[0]]
        assert (shifted.scale, shifted.zero_point) == ((1.0,), (0,))

    @pytest.mark.parametrize("preprocessing", [IMAGENET, CAFFE], ids=["imagenet", "caffe"])
    @pytest.mark.parametrize("scheme", ["float32", "int8"])
    def test_any_other_preprocessing_is_inside_the_file(self, tmp_path, preprocessing, scheme):
        model = warmed(keras_resnet.create_model(SMALL, preprocessing=preprocessing))
        bundle = export.to_tflite(model, tmp_path / "b", scheme, calibration=images(16))
        pixels = images(32)
        expected = keras_probabilities(model, pixels)
        actual = export.Classifier(bundle.path).probabilities(pixels)
        moved = np.abs(expected - actual).sum(axis=1).mean() / 2
        assert moved <= (1e-5 if scheme == "float32" else 0.05)
        if scheme == "int8":
            graph = read_graph(bundle.model_path)
            source = graph.tensors[graph.inputs[0]]
            assert (source.scale, source.zero_point) == ((1.0,), (0,))

    def test_dark_calibration_images_do_not_stretch_the_input(self, trained, tmp_path):
        dark = images(8) // 4 + 20  # 20..83
        bundle = export.to_tflite(trained, tmp_path / "b", "int8", calibration=dark)
        graph = read_graph(bundle.model_path)
        assert graph.tensors[graph.inputs[0]].scale == (1.0,)

    def test_calibration_images_may_come_from_a_file(self, trained, tmp_path):
        np.savez(tmp_path / "some.npz", images=images(30))
        made = [
            export.to_tflite(trained, tmp_path / f"b{number}", "int8", calibration=given)
            for number, given in enumerate((images(30), tmp_path / "some.npz"))
        ]
        assert made[0].model_path.read_bytes() == made[1].model_path.read_bytes()
        assert made[1].manifest["calibration"]["source"] == "some.npz"
        np.savez(tmp_path / "other.npz", pixels=images(30))
        (tmp_path / "torn.npz").write_bytes((tmp_path / "some.npz").read_bytes()[:999])
        for name in ("other.npz", "torn.npz"):
            with pytest.raises(ValueError, match=rf"an array `images`.*{name}"):
                export.to_tflite(trained, tmp_path / "b", calibration=str(tmp_path / name))


def nested(model):
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, model(inputs))


def build_and_export(build, path):
    model = build()
    is_nested = any(isinstance(layer, keras.Model) for layer in model.layers)
    export.to_tflite(model, path, "float32", preprocessing=Preprocessing() if is_nested else None)


class TestModelsOfOthers:
    def test_a_softmax_fused_into_the_last_layer(self, tmp_path):
        inputs = keras.Input(SHAPE)
        x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(x))
        for scheme in ("float32", "int8"):
            bundle = export.to_tflite(
                model,
                tmp_path / scheme,
                scheme,
                preprocessing=Preprocessing(),
                calibration=images(8),
            )
            assert bundle.labels == ("class 0", "class 1", "class 2", "class 3", "class 4")

    def test_logits_come_out_as_probabilities(self, tmp_path):
        model = warmed(keras_resnet.create_model(SMALL, classifier_activation=None))
        bundle = export.to_tflite(model, tmp_path / "b", "float32")
        logits = keras_probabilities(model, images(4)).astype(np.float64)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        actual = export.Classifier(bundle.path).probabilities(images(4))
        np.testing.assert_allclose(actual, expected, atol=1e-5)

    def test_mixed_precision_is_exported_in_float32(self, tmp_path):
        model = warmed(keras_resnet.create_model(SMALL, dtype="mixed_bfloat16"))
        bundle = export.to_tflite(model, tmp_path / "b", "float32")
        assert read_graph(bundle.model_path).scheme == "float32"

    def test_one_channel_images(self, tmp_path):
        model = warmed(keras_resnet.create_model(SMALL, input_shape=(32, 32, 1)))
        grey = images(4, (32, 32, 1))
        bundle = export.to_tflite(model, tmp_path / "b", "int8", calibration=grey)
        assert bundle.input_shape == (32, 32, 1)
        assert len(export.Classifier(bundle.path)(images(1)[0])) == 5

    def test_a_network_that_overflows_is_named(self, tmp_path):
        model = keras_resnet.create_model(SMALL)
        model.set_weights([np.full_like(w, np.inf) for w in model.get_weights()])
        with pytest.raises(ValueError, match="not finite"):
            export.to_tflite(model, tmp_path / "b", "float32")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("build", "words"),
        [
            (lambda: keras_resnet.create_model(SMALL, input_shape=(None, None, 3)), "fixed input"),
            (lambda: keras_resnet.create_model(SMALL, include_top=False,
                                               input_shape=SHAPE), "classifier"),
            (lambda: keras_resnet.create_model(SMALL, classifier_activation="sigmoid"), "softmax"),
            # A classifier inside a model: its softmax would be taken for logits.
            (lambda: nested(keras_resnet.create_model(SMALL)), "ends in 'small'"),
            (lambda: keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(),
                                       keras.layers.Dense(3)]), "preprocessing"),
        ],
        ids=["open-size", "no-top", "sigmoid", "nested", "no-preprocessing"],
    )  # fmt: skip
    def test_what_cannot_be_exported_is_refused_with_the_reason(self, tmp_path, build, words):
        with pytest.raises(ValueError, match=words):
            build_and_export(build, tmp_path / "b")
        assert list(tmp_path.iterdir()) == []


class TestVerdict:
    def test_an_export_that_loses_too_much_is_rejected_and_leaves_nothing(
        self, trained, digits, tmp_path
    ):
        with pytest.raises(export.ExportRejected, match="accuracy drops") as rejection:
            export.to_tflite(trained, tmp_path / "b", "int8", calibration=GREY, evaluation=digits)
        report = rejection.value.report
        assert not report.passed
        assert report.accuracy.drop > 0.01
        assert "REJECTED" in str(report)
        (page,) = tmp_path.iterdir()
        assert page.name == "b.rejected.html"
        assert "accuracy drops" in page.read_text(encoding="utf-8")

    def test_a_rejected_export_keeps_the_bundle_that_was_there(self, trained, digits, tmp_path):
        first = export.to_tflite(trained, tmp_path / "b", "float32")
        before = first.model_path.read_bytes()
        with pytest.raises(export.ExportRejected):
            export.to_tflite(
                trained,
                tmp_path / "b",
                "int8",
                calibration=GREY,
                evaluation=digits,
                force=True,
            )
        assert export.Bundle.open(tmp_path / "b").model_path.read_bytes() == before
        assert {p.name for p in tmp_path.iterdir()} == {"b", "b.rejected.html"}
        export.to_tflite(trained, tmp_path / "b", "float32", force=True)
        assert {p.name for p in tmp_path.iterdir()} == {"b"}  # the old page is gone

    def test_a_wrong_preprocessing_in_the_file_is_caught(
        self, trained, digits, tmp_path, monkeypatch
    ):
        """The graph subtracts another mean than the source: the fault is in the file."""

        class Faulty(SourceNetwork):
            def probabilities(self, pixels):
                return super().probabilities(pixels / 255)

        monkeypatch.setattr("keras_resnet.export.tflite.SourceNetwork", Faulty)
        with pytest.raises(export.ExportRejected, match="differs"):
            export.to_tflite(trained, tmp_path / "b", "float32", evaluation=digits)
        assert [p.name for p in tmp_path.iterdir()] == ["b.rejected.html"]

    def test_a_file_that_does_not_run_is_refused_with_the_reason(self, tmp_path, monkeypatch):
        def narrow(*arguments, **options):
            model = flatbuffer.unpack(convert(*arguments, **options))
            graph = model.subgraphs[0]
            for operator in graph.operators:
                if model.operatorCodes[operator.opcodeIndex].builtinCode == BuiltinOperator.ADD:
                    output = graph.tensors[operator.outputs[0]].quantization
                    output.scale = [output.scale[0] / 2000]
            return flatbuffer.pack(model)

        convert = tflite.convert
        monkeypatch.setattr(tflite, "convert", narrow)
        model = of_family("basic, CIFAR, option A")
        with pytest.raises(ValueError, match="LiteRT refuses"):
            export.to_tflite(model, tmp_path / "b", "int8", calibration=images(40))
        assert list(tmp_path.iterdir()) == []

    def test_max_drop_counts_images(self, trained, digits, tmp_path):
        with pytest.raises(ValueError, match="max_drop"):
            export.to_tflite(trained, tmp_path / "b", "float32", max_drop=1.5)
        bundle = export.to_tflite(
            trained, tmp_path / "b", "float32", evaluation=digits, max_drop=0.0
        )
        assert bundle.manifest["verification"]["accuracy"]["drop"] == 0.0

    def test_int8_without_calibration_images_is_refused(self, trained, tmp_path):
        with pytest.raises(ValueError, match="calibration"):
            export.to_tflite(trained, tmp_path / "b", "int8")
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_scheme_names_those_that_there_are(self, trained, tmp_path):
        with pytest.raises(ValueError, match=r"dynamic_int8.*Received: 'int4'"):
            export.to_tflite(trained, tmp_path / "b", "int4")


class TestBundleDirectory:
    def copy(self, bundle, to):
        to.mkdir()
        for file in bundle.path.iterdir():
            (to / file.name).write_bytes(file.read_bytes())
        return to

    def test_it_holds_five_files(self, bundles):
        names = {p.name for p in bundles["int8"].path.iterdir()}
        assert names == {"model.tflite", "labels.txt", "manifest.json", "golden.npz", "report.html"}
        assert bundles["int8"].labels == tuple("0123456789")

    def test_a_changed_manifest_is_noticed(self, bundles, tmp_path):
        path = self.copy(bundles["int8"], tmp_path / "b")
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["preprocessing"]["crop"] = 0.5
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(export.BundleError, match=r"manifest\.json was changed"):
            export.verify(path)
        del manifest["preprocessing"]
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(export.BundleError):
            export.verify(path)

    @pytest.mark.parametrize("name", ["model.tflite", "labels.txt", "golden.npz"])
    def test_one_changed_bit_is_noticed(self, bundles, tmp_path, name):
        path = self.copy(bundles["int8"], tmp_path / "b")
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
        with pytest.raises(export.BundleError, match=f"{name} was changed"):
            export.verify(path)

    def test_a_newer_version_says_what_to_do(self, bundles, tmp_path):
        path = self.copy(bundles["int8"], tmp_path / "b")
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
        with pytest.raises(export.BundleError, match=r"schema version 99.*[Ee]xport it again"):
            export.verify(path)

    def test_what_is_no_bundle_says_so(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            export.verify(tmp_path / "nowhere")
        with pytest.raises(export.BundleError, match=r"no manifest\.json"):
            export.verify(tmp_path)
        (tmp_path / "manifest.json").write_text("{]")
        with pytest.raises(export.BundleError, match="damaged"):
            export.verify(tmp_path)

    def test_an_existing_path_is_only_replaced_when_told(self, trained, tmp_path):
        export.to_tflite(trained, tmp_path / "b", "float32")
        with pytest.raises(FileExistsError, match="force"):
            export.to_tflite(trained, tmp_path / "b", "float32")
        export.to_tflite(trained, tmp_path / "b", "float16", force=True)
        assert export.Bundle.open(tmp_path / "b").scheme == "float16"
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "thesis.txt").write_text("years of work")
        with pytest.raises(FileExistsError, match="not ours"):
            export.to_tflite(trained, precious, "float32", force=True)
        assert (precious / "thesis.txt").exists()

    def test_evaluation_images_of_other_classes_are_refused(self, trained, digits, tmp_path):
        other = dataclasses.replace(digits, class_names=tuple("abcdefghij"))
        with pytest.raises(ValueError, match="'0' where digits has 'a'"):
            export.to_tflite(trained, tmp_path / "b", "float32", evaluation=other)

    def test_labels_are_checked(self, trained, tmp_path):
        with pytest.raises(ValueError, match="3 names for 10 classes"):
            export.to_tflite(trained, tmp_path / "b", "float32", labels=["a", "b", "c"])
        with pytest.raises(ValueError, match="one line"):
            export.to_tflite(trained, tmp_path / "b", "float32", labels=["a\nb"] * 10)
        names = [f"Ziffer {i} 数" for i in range(10)]
        bundle = export.to_tflite(trained, tmp_path / "b", "float32", labels=names)
        assert bundle.labels == tuple(names)


class TestClassifier:
    def test_it_ranks_labels_by_probability(self, bundles, digits):
        pixels, labels = digits.test.take(20, SHAPE, Preprocessing(), seed=3)
        classifier = export.Classifier(bundles["int8"].path)
        right = 0
        for image, label in zip(pixels, labels, strict=True):
            ranking = classifier(image, top=None)
            probabilities = [p for _, p in ranking]
            assert len(ranking) == 10
            assert probabilities == sorted(probabilities, reverse=True)
            right += ranking[0][0] == str(label)
        assert right >= 15
        assert len(classifier(pixels[0])) == 5
        assert classifier(pixels[0], top=2) == classifier(pixels[0], top=None)[:2]

    def test_path_picture_bytes_and_array_are_the_same(self, bundles, digits, tmp_path):
        pixels, _ = digits.test.take(1, SHAPE, Preprocessing())
        path = tmp_path / "digit.png"
        Image.fromarray(pixels[0]).save(path)
        classifier = export.Classifier(bundles["float32"].path)
        expected = classifier(pixels[0])
        for image in (path, str(path), path.read_bytes(), Image.open(path)):
            assert classifier(image) == expected

    def test_a_normalized_array_is_refused(self, bundles):
        with pytest.raises(TypeError, match="uint8"):
            export.Classifier(bundles["int8"].path)(np.zeros(SHAPE, np.float32))

    def test_an_image_of_another_size_is_fitted_as_in_training(self, bundles, digits):
        pixels, _ = digits.test.take(1, SHAPE, Preprocessing())
        large = np.array(Image.fromarray(pixels[0]).resize((200, 120)))
        classifier = export.Classifier(bundles["float32"].path)
        assert classifier(large) == classifier(Preprocessing().fit(large, (32, 32)))

    def test_a_device_needs_neither_tensorflow_nor_keras(self, bundles, digits, tmp_path):
        pixels, _ = digits.test.take(1, SHAPE, Preprocessing())
        Image.fromarray(pixels[0]).save(tmp_path / "digit.png")
        script = f"""
            import sys
            class Refuse:
                def find_spec(self, name, path=None, target=None):
                    if name.split(".")[0] in {{"tensorflow", "keras", "tf_keras", "rich"}}:
                        raise ModuleNotFoundError(name, name=name)
            sys.meta_path.insert(0, Refuse())
            from keras_resnet import cli, export
            bundle = {str(bundles["int8"].path)!r}
            assert export.verify(bundle).passed
            print(export.Classifier(bundle)("digit.png")[0][0])
            assert cli.main(["verify", bundle]) == 0
            assert cli.main(["classify", bundle, "digit.png"]) == 0
            assert cli.main(["info", "resnet20"]) == 1
        """
        done = run_python(script, cwd=tmp_path)
        (expected, _), *_ = export.Classifier(bundles["int8"].path)(tmp_path / "digit.png")
        assert done.stdout.splitlines()[0] == expected
        assert "info needs" in done.stderr


class TestInspection:
    def test_a_float_island_is_not_int8(self, bundles):
        graph = read_graph(bundles["int8"].model_path)
        assert graph.scheme == "int8"
        # The first addition is done in float: 8-bit weights everywhere, and yet not int8.
        number = next(i for i, op in enumerate(graph.operators) if op.name == "ADD")
        of_addition = graph.operators[number].outputs[0]
        tensors = tuple(
            dataclasses.replace(tensor, dtype="float32") if tensor.index == of_addition else tensor
            for tensor in graph.tensors
        )
        # Its reader is a convolution; give that one an 8-bit copy, as a QUANTIZE would.
        copy = dataclasses.replace(graph.tensors[of_addition], index=len(tensors))
        operators = tuple(
            dataclasses.replace(
                op, inputs=tuple(copy.index if i == of_addition else i for i in op.inputs)
            )
            for op in graph.operators
        )
        quantize = Operator("QUANTIZE", (of_addition,), (copy.index,))
        island = dataclasses.replace(
            graph,
            tensors=(*tensors, copy),
            operators=(*operators[: number + 1], quantize, *operators[number + 1 :]),
        )
        assert island.scheme == "mixed"

    @pytest.mark.parametrize("content", [b"", b"not a model", b"\0" * 64])
    def test_what_is_no_tflite_file_says_so(self, tmp_path, content):
        (tmp_path / "x.tflite").write_bytes(content)
        with pytest.raises(ValueError, match="Not a TFLite file"):
            read_graph(tmp_path / "x.tflite")

    def test_constants_lie_at_multiples_of_16_bytes(self, bundles):
        """The schema asks for it; microcontrollers and memory-mapped weights rely on it."""
        from ai_edge_litert import schema_py_generated as schema

        content = bundles["int8"].model_path.read_bytes()
        model = schema.Model.GetRootAs(content, 0)
        whole = np.frombuffer(content, np.uint8)
        sizes = 0
        for i in range(model.BuffersLength()):
            buffer = model.Buffers(i)
            if buffer.DataLength() > 64:  # long enough to be found again
                offset = buffer.DataAsNumpy().__array_interface__["data"][0]
                assert (offset - whole.__array_interface__["data"][0]) % 16 == 0
                sizes += 1
        assert sizes > 5
