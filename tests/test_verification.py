"""The verdict: its statistics, its words, and that faults in a file do not get past it."""

import dataclasses
import itertools
import json
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import TINY, paint

import keras_resnet
from keras_resnet import export
from keras_resnet.export import bundle as bundle_module
from keras_resnet.export import tflite
from keras_resnet.export.calibration import Calibration
from keras_resnet.export.flatbuffer import pack, unpack
from keras_resnet.export.graph import read_graph
from keras_resnet.export.layers import LayerError
from keras_resnet.export.quantizer import quantize
from keras_resnet.export.repair import Repair
from keras_resnet.export.source import SourceNetwork
from keras_resnet.export.verification import (
    AccuracyComparison,
    Outcomes,
    Parity,
    Verification,
    compare,
    judge,
    mcnemar,
    outcomes,
    paired_interval,
    real_scheme,
    reload,
)

GOOD = Parity(images=32, max_difference=0.0, total_variation=0.0, top1_agreement=1.0)


def counts(examples, only_source, only_exported, max_drop=0.01, both=None):
    both = examples - only_source - only_exported if both is None else both
    return AccuracyComparison(
        examples=examples,
        source_correct=both + only_source,
        exported_correct=both + only_exported,
        only_source_correct=only_source,
        only_exported_correct=only_exported,
        max_drop=max_drop,
    )


@st.composite
def tables(draw):
    """Images that only the first, and only the second gets right, and all images."""
    n = draw(st.integers(1, 2000))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


class TestMcNemar:
    @pytest.mark.parametrize("n", range(11))
    def test_it_is_the_share_of_coin_tosses_at_least_as_uneven(self, n):
        heads = [sum(tosses) for tosses in itertools.product((0, 1), repeat=n)]
        for b in range(n + 1):
            as_uneven = sum(abs(2 * h - n) >= abs(2 * b - n) for h in heads)
            assert mcnemar(b, n - b) == pytest.approx(as_uneven / len(heads), rel=1e-12)

    def test_a_published_example(self):
        """Airway reactivity, 1 against 7 of 21: p = 0.070 (Fagerland, Lydersen and Laake 2014)."""
        assert mcnemar(1, 7) == pytest.approx(0.070, abs=5e-4)

    @given(st.integers(0, 3000), st.integers(0, 3000))
    def test_it_is_symmetric_and_a_probability(self, b, c):
        assert mcnemar(b, c) == mcnemar(c, b)
        assert 0 <= mcnemar(b, c) <= 1
        assert mcnemar(b, b) == 1

    def test_counts_too_large_for_floating_point(self):
        # 30,250 expected, 122.98 the standard deviation: 2.03 of them away.
        assert mcnemar(30_000, 30_500) == pytest.approx(math.erfc(2.029 / math.sqrt(2)), rel=0.01)
        assert mcnemar(0, 3000) == 0  # 2**-2999 is less than a float can say


class TestPairedInterval:
    def test_a_published_example(self):
        """Airway reactivity: -0.286 with -0.517 to -0.026 (Fagerland, Lydersen and Laake 2014)."""
        low, high = paired_interval(1, 7, 21)
        assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)

    def test_without_disagreement_it_has_a_closed_form(self):
        z2 = 1.959964**2
        for n in (1, 50, 200, 10_000):
            low, high = paired_interval(0, 0, n)
            assert high == pytest.approx(z2 / (n + z2), rel=1e-5)
            assert low == pytest.approx(-high, rel=1e-5)

    @pytest.mark.parametrize(("b", "c", "n"), [(5, 3, 40), (12, 2, 100), (0, 4, 30), (1, 0, 9)])
    def test_at_its_ends_the_score_of_the_likeliest_table_is_1_96(self, b, c, n):
        """The constrained maximum of the likelihood is searched here, not solved for."""
        for end in paired_interval(b, c, n):
            second = np.linspace(max(0.0, -end), (1 - end) / 2, 400_001)[1:-1]
            with np.errstate(divide="ignore"):
                likelihood = (
                    (b * np.log(second + end) if b else 0)
                    + (c * np.log(second) if c else 0)
                    + (n - b - c) * np.log(1 - 2 * second - end)
                )
            q = second[np.argmax(likelihood)]
            score = ((b - c) / n - end) / math.sqrt((2 * q + end * (1 - end)) / n)
            assert abs(score) == pytest.approx(1.96, abs=0.01)

    @pytest.mark.parametrize("shares", [(0.02, 0.02), (0.1, 0.05), (0.3, 0.1), (0.01, 0.2)])
    def test_it_covers_the_true_difference_in_95_of_100_tables(self, shares):
        n, (p, q) = 40, shares
        covered = 0.0
        for b in range(n + 1):
            for c in range(n + 1 - b):
                chance = (
                    math.comb(n, b) * math.comb(n - b, c) * p**b * q**c * (1 - p - q) ** (n - b - c)
                )
                if chance > 1e-7:
                    low, high = paired_interval(b, c, n)
                    covered += chance * (low <= p - q <= high)
        assert 0.93 <= covered <= 0.995

    @given(tables())
    def test_it_contains_the_estimate_and_turns_with_the_sides(self, table):
        b, c, n = table
        low, high = paired_interval(b, c, n)
        assert -1 <= low <= (b - c) / n <= high <= 1
        assert low < high
        assert paired_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-9)

    @given(tables())
    def test_more_images_narrow_it(self, table):
        b, c, n = table
        low, high = paired_interval(b, c, n)
        closer, nearer = paired_interval(3 * b, 3 * c, 3 * n)
        assert nearer - closer < high - low


class TestJudgement:
    def test_200_images_do_not_prove_a_tenth_of_a_point(self):
        report = judge("int8", "int8", GOOD, counts(200, 0, 0, max_drop=0.001))
        assert report.passed
        (warning,) = report.warnings
        assert "200 images leave room for a drop of 1.88%" in warning
        assert "about 3,838 images" in warning
        assert warning in str(report)
        assert report.to_dict()["warnings"] == [warning]

    def test_enough_images_are_not_warned_about(self):
        report = judge("int8", "int8", GOOD, counts(4000, 3, 2, max_drop=0.01))
        assert report.passed
        assert report.warnings == ()

    def test_the_point_estimate_beyond_the_limit_rejects(self):
        report = judge("int8", "int8", GOOD, counts(1000, 15, 4, max_drop=0.01))
        assert not report.passed
        assert "drops by 1.10% of 1000 images" in report.problems[0]
        assert report.warnings == ()

    def test_max_drop_is_a_fraction_of_the_images_and_may_be_reached(self):
        assert judge("int8", "int8", GOOD, counts(1000, 10, 0, max_drop=0.01)).passed
        assert not judge("int8", "int8", GOOD, counts(1000, 11, 0, max_drop=0.01)).passed

    @given(tables(), st.sampled_from([0.001, 0.01, 0.1]))
    @settings(max_examples=50)
    def test_the_images_needed_are_the_fewest_that_settle_it(self, table, max_drop):
        b, c, n = table
        needed = counts(n, b, c, max_drop).images_needed()
        if needed is None:
            assert (b - c) / n >= max_drop - 0.002
            return
        upper = [paired_interval(b / n * m, c / n * m, m)[1] for m in (needed, max(needed - 1, 1))]
        assert upper[0] <= max_drop
        assert needed == 1 or upper[1] > max_drop

    def test_what_is_not_a_number_is_a_problem(self):
        nan = compare(np.full((4, 3), 1 / 3), np.full((4, 3), np.nan))
        for scheme in export.SCHEMES:
            assert not judge(scheme, scheme, nan).passed
        features = compare({"C2": np.ones((2, 3)), "C3": np.ones((2, 3))},
                           {"C2": np.ones((2, 3)), "C3": np.full((2, 3), np.nan)})  # fmt: skip
        assert not judge("int8", "int8", features).passed

    def test_other_warnings_are_passed_on(self):
        report = judge("int8", "int8", GOOD, warnings=["7 images are few to calibrate with"])
        assert report.passed
        assert "warning: 7 images are few" in str(report)


class TestComparison:
    def test_the_differences_of_probabilities(self):
        before = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
        after = np.array([[0.4, 0.4, 0.2], [0.1, 0.1, 0.8]])
        parity = compare(before, after)
        assert parity.max_difference == pytest.approx(0.1)
        assert parity.mean_difference == pytest.approx(0.2 / 6)
        assert parity.total_variation == pytest.approx(0.05)
        assert parity.top1_agreement == 1.0
        assert parity.relative_error is None

    def test_features_are_compared_by_their_energy_the_worst_output_counts(self):
        before = {"C2": np.full((2, 4), 2.0), "C3": np.full((2, 4), 10.0)}
        after = {"C2": np.full((2, 4), 2.2), "C3": np.full((2, 4), 10.1)}
        parity = compare(before, after)
        assert parity.relative_error == pytest.approx(0.1)
        assert parity.max_difference == pytest.approx(0.2)
        assert parity.top1_agreement is None
        assert judge("int8", "int8", parity).passed
        assert not judge("float32", "float32", parity).passed

    def test_outputs_that_do_not_correspond_are_refused(self):
        with pytest.raises(ValueError, match=r"same outputs.*\(2, 3\).*\(2, 4\)"):
            compare(np.ones((2, 3)), np.ones((2, 4)))
        with pytest.raises(ValueError, match="same outputs"):
            compare({"C2": np.ones((2, 3))}, {"C3": np.ones((2, 3))})
        with pytest.raises(ValueError, match="features"):
            compare(np.ones((2, 3)), {"C2": np.ones((2, 3))})
        assert compare({"C2": np.ones((2, 3))}, np.ones((2, 3))).relative_error == 0

    def test_every_image_counts_once_whatever_the_batches(self):
        rng = np.random.default_rng(0)
        labels, before, after = rng.integers(0, 4, (3, 50))
        images = np.arange(50, dtype=np.uint8)

        def network(classes):
            return lambda pixels: np.eye(4)[classes[pixels]]

        for size in (1, 7, 50):
            batches = [(images[i : i + size], labels[i : i + size]) for i in range(0, 50, size)]
            result = outcomes(network(before), network(after), batches)
            accuracy = result.accuracy(0.5)
            assert accuracy.examples == 50
            assert accuracy.source_correct == (before == labels).sum()
            assert accuracy.exported_correct == (after == labels).sum()
            assert accuracy.drop * 50 == pytest.approx(
                accuracy.only_source_correct - accuracy.only_exported_correct
            )

    def test_the_confusion_matrix_has_true_classes_down(self):
        result = Outcomes(
            labels=np.array([0, 0, 2, 2, 2]),
            source=np.array([0, 0, 2, 2, 1]),
            exported=np.array([0, 1, 2, 1, 1]),
        )
        assert result.confusion(3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 2, 1]]
        assert result.source_confusion(3).tolist() == [[2, 0, 0], [0, 0, 0], [0, 1, 2]]

    def test_no_images_are_no_evidence(self):
        with pytest.raises(ValueError, match="must hold images"):
            outcomes(lambda x: x, lambda x: x, [])


class TestRecord:
    def full(self):
        layer = LayerError(layer="stem_conv", operator="CONV_2D", tensors=("a", "b"),
                           own_sqnr_db=31.5, sqnr_db=30.0, saturation=0.01)  # fmt: skip
        mended = Repair(layers=("stem_conv",), tensors=("a", "b"), drop_before=0.2, drop_after=0.0,
                        bytes_before=100, bytes_after=120, tried=3, slowdown=1.5)  # fmt: skip
        report = judge("int8", "int8", GOOD, counts(200, 1, 0))
        return dataclasses.replace(report, layers=(layer,), repair=mended)

    def test_it_survives_json(self):
        report = self.full()
        values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert Verification.from_dict(values) == report

    def test_it_is_the_same_for_the_same_export(self):
        """How long a repaired file takes is told, and not recorded."""
        report = self.full()
        slower = dataclasses.replace(report.repair, slowdown=9.0)
        assert dataclasses.replace(report, repair=slower).to_dict() == report.to_dict()
        assert "time x 1.50" in str(report)

    def test_what_schema_version_1_wrote_is_read(self):
        values = {
            "scheme": "int8",
            "parity": {"images": 32, "max_difference": 0.01, "total_variation": 0.002,
                       "top1_agreement": 1.0},
            "accuracy": {"examples": 355, "source_correct": 350, "exported_correct": 349,
                         "only_source_correct": 2, "only_exported_correct": 1, "max_drop": 0.01,
                         "source_accuracy": 0.9859, "exported_accuracy": 0.9831, "drop": 0.0028},
            "problems": [],
            "passed": True,
        }  # fmt: skip
        report = Verification.from_dict(values)
        assert report.passed
        assert report.accuracy.p_value == 1.0
        assert report.parity.mean_difference is None
        assert "32: top-1 agreement 100.0%" in str(report)

    def test_the_words_say_the_interval_and_the_test(self):
        text = str(judge("int8", "int8", GOOD, counts(355, 2, 1)))
        assert "95% interval -1.06% to 1.78%" in text
        assert "McNemar p = 1" in text
        assert text.endswith("passed")


@keras.saving.register_keras_serializable(package="test_verification")
class Forgetful(keras.layers.Layer):
    """Multiplies by a number that it does not save."""

    factor = 1.0

    def call(self, inputs):
        return inputs * self.factor


class TestReload:
    def test_it_is_the_same_network_and_shares_nothing(self):
        model = keras_resnet.create_model(TINY)
        image = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3))
        expected = model.predict_on_batch(image)
        copy = reload(model)
        model.set_weights([np.zeros_like(w) for w in model.get_weights()])
        np.testing.assert_allclose(copy.predict_on_batch(image), expected, rtol=1e-6)
        assert copy.preprocessing == model.preprocessing

    def test_what_a_model_does_not_save_is_not_in_it(self):
        layer = Forgetful()
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layer(inputs))
        layer.factor = 3.0
        model.predict_function = None
        assert reload(model).predict_on_batch(np.ones((1, 4))).tolist() == [[1.0] * 4]

    def test_a_model_that_runs_code_when_loaded_is_refused_by_name(self):
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs), name="sly")
        with pytest.raises(ValueError, match=r"safe mode: no Lambda.*'sly'"):
            reload(model)


@pytest.fixture(scope="module")
def colors():
    """TINY, trained to tell which channel of an image is brightest; and test images."""
    keras.utils.set_random_seed(0)
    model = keras_resnet.create_model(TINY, class_names=("red", "green", "blue"))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    images, labels = paint(256, seed=0)
    stale = {layer.name: layer.get_weights() for layer in model.layers if "norm" in layer.name}
    model.fit(model.preprocessing(images), labels, batch_size=32, epochs=4, verbose=0)
    return model, images, stale


@pytest.fixture(scope="module")
def made(colors):
    """Names of the convolutions' outputs, and a file with the second of them in float."""
    model, images, _ = colors
    exact = tflite.convert(
        SourceNetwork(model, model.preprocessing), export.SCHEMES["float32"], None
    )
    graph = read_graph(exact)
    names = [graph.tensors[op.outputs[0]].name for op in graph.operators if op.name == "CONV_2D"]
    return names, read_graph(quantize(exact, images[:8], keep_float=names[1:2]))


class TestSchemeOfARepairedFile:
    def test_the_layers_that_were_named_are_left_out(self, made):
        names, graph = made
        assert real_scheme(graph) == "mixed"
        assert real_scheme(graph, names[1:2]) == "int8"

    def test_a_layer_in_float_that_was_not_named_is_noticed(self, made):
        names, graph = made
        assert real_scheme(graph, names[2:3]) == "mixed"

    def test_naming_every_layer_makes_no_8_bit_file(self, made):
        _, graph = made
        every = [tensor.name for tensor in graph.tensors]
        assert real_scheme(graph, every) != "int8"


def first_convolution(content, change):
    """The file with the weights of its first convolution changed in place."""
    model = unpack(content)
    graph = model.subgraphs[0]
    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    operator = next(op for op in graph.operators if codes[op.opcodeIndex] == 3)  # CONV_2D
    weights = graph.tensors[operator.inputs[1]]
    values = np.array(model.buffers[weights.buffer].data).view(np.float32)
    change(values.reshape(weights.shape))
    model.buffers[weights.buffer].data = values.view(np.uint8)
    return pack(model)


def swap_channels(weights):
    weights[...] = weights[..., ::-1].copy()


def flip_a_bit(weights):
    weights.reshape(-1)[weights.size // 2 :][:1].view(np.uint32)[...] ^= 1 << 30


@pytest.mark.filterwarnings("ignore:the images look like noise")
class TestFaultsInTheFile:
    """The fault is put into what was converted; the verifier is as it always is."""

    def export_damaged(self, monkeypatch, path, model, images, scheme, damage):
        original = tflite.convert
        monkeypatch.setattr(tflite, "convert", lambda *a, **k: damage(original, *a, **k))
        with pytest.raises(export.ExportRejected) as rejection:
            export.to_tflite(model, path / "b", scheme, calibration=images)
        assert not (path / "b").exists()
        return rejection.value.report

    @pytest.mark.parametrize("change", [swap_channels, flip_a_bit])
    def test_changed_weights(self, colors, monkeypatch, tmp_path, change):
        model, images, _ = colors

        def damage(convert, *arguments, **options):
            return first_convolution(convert(*arguments, **options), change)

        report = self.export_damaged(monkeypatch, tmp_path, model, images, "float32", damage)
        assert "differs by" in report.problems[0]

    def test_other_constants_of_normalization(self, colors, monkeypatch, tmp_path):
        model, images, _ = colors
        other = keras_resnet.Preprocessing(mean=(120.0, 115.0, 100.0), std=(60.0, 58.0, 57.0))

        def damage(convert, network, *arguments, **options):
            return convert(SourceNetwork(network.model, other), *arguments, **options)

        report = self.export_damaged(monkeypatch, tmp_path, model, images, "float32", damage)
        assert "differs by" in report.problems[0]

    @pytest.mark.parametrize("scheme", ["float32", "int8"])
    def test_batch_normalization_from_before_the_training(
        self, colors, monkeypatch, tmp_path, scheme
    ):
        model, images, stale = colors

        def damage(convert, network, *arguments, **options):
            copy = reload(model)
            for name, values in stale.items():
                gamma, beta, *_ = copy.get_layer(name).get_weights()
                copy.get_layer(name).set_weights([gamma, beta, *values[2:]])
            return convert(SourceNetwork(copy, model.preprocessing), *arguments, **options)

        report = self.export_damaged(monkeypatch, tmp_path, model, images, scheme, damage)
        assert report.problems

    def test_ranges_read_from_grey_images(self, colors, monkeypatch, tmp_path):
        model, images, _ = colors

        def damage(convert, network, scheme, calibration, **options):
            grey = np.full_like(calibration.images, 128)
            return convert(network, scheme, Calibration(grey, "grey"), **options)

        report = self.export_damaged(monkeypatch, tmp_path, model, images, "int8", damage)
        assert "moved to other classes" in " ".join(report.problems)

    @pytest.mark.parametrize(
        ("claimed", "real"), [("float16", "float32"), ("int8", "float32"), ("int8", "int16x8")]
    )
    def test_another_scheme_than_the_file_claims(
        self, colors, monkeypatch, tmp_path, claimed, real
    ):
        model, images, _ = colors

        def damage(convert, network, scheme, *arguments, **options):
            return convert(network, export.SCHEMES[real], *arguments, **options)

        report = self.export_damaged(monkeypatch, tmp_path, model, images, claimed, damage)
        assert f"the file claims the scheme {claimed} and is really {real}" in report.problems

    def test_a_file_that_was_changed_and_signed_anew_fails_the_golden_check(self, colors, tmp_path):
        model, images, _ = colors
        bundle = export.to_tflite(model, tmp_path / "b", "float32", calibration=images)
        content = first_convolution(bundle.model_path.read_bytes(), swap_channels)
        (tmp_path / "forged").mkdir()
        manifest = {k: v for k, v in bundle.manifest.items() if k != "sha256"}
        bundle_module.write_files(
            tmp_path / "forged", content, bundle.labels, bundle.golden(), manifest
        )
        assert export.verify(bundle.path).passed
        report = export.verify(tmp_path / "forged")
        assert not report.passed
        assert "REJECTED" in str(report)
