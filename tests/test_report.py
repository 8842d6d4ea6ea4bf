"""The page that tells how an export was judged, and the code that it gives."""

import contextlib
import dataclasses
import html.parser
import io
import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import TINY

import keras_resnet
from keras_resnet import export
from keras_resnet.export import tflite
from keras_resnet.export.clients import instructions
from keras_resnet.export.layers import LayerError
from keras_resnet.export.quantizer import quantize
from keras_resnet.export.repair import Repair
from keras_resnet.export.report import render
from keras_resnet.export.runtime import Runner
from keras_resnet.export.source import SourceNetwork
from keras_resnet.export.verification import Outcomes, Parity, compare, judge

VOID = {"meta", "line", "circle", "br"}
HOSTILE = '</td><script>alert("1")</script><img src=x onerror=alert(2)>&amp;\'"'


class Page(html.parser.HTMLParser):
    """Checks that elements are closed in order; keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def files():
    keras.utils.set_random_seed(0)
    model = keras_resnet.create_model(TINY)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    rng = np.random.default_rng(0)
    model(rng.uniform(-1, 1, (8, 32, 32, 3)), training=True)
    network = SourceNetwork(model, model.preprocessing)
    exact = tflite.convert(network, export.SCHEMES["float32"], None)
    images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    made = {"float32": exact, "uint8": quantize(exact, images)}
    made["int8"] = quantize(exact, images, source="int8", target="int8")
    return made, images, network.predict(images), model.preprocessing.to_dict()


PARITY = Parity(
    images=32, max_difference=0.01, mean_difference=0.001, total_variation=0.01, top1_agreement=1.0
)


def results(classes=3, images=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    source = np.where(rng.random(images) < 0.9, labels, rng.integers(0, classes, images))
    exported = np.where(rng.random(images) < 0.97, source, rng.integers(0, classes, images))
    return Outcomes(labels=labels, source=source, exported=exported)


def page(files, labels=("red", "green", "blue"), max_drop=0.5, outcomes=None, **manifest):
    made, *_, preprocessing = files
    outcomes = outcomes or results(len(labels))
    report = judge("int8", "int8", PARITY, outcomes.accuracy(max_drop))
    layers = [
        LayerError(layer=f"conv{i}", operator="CONV_2D", tensors=(f"t{i}",), own_sqnr_db=10.0 + i,
                   sqnr_db=9.0, saturation=0.125)
        for i in range(30)
    ]  # fmt: skip
    report = dataclasses.replace(report, layers=tuple(layers))
    facts = {
        "model": "tiny",
        "preprocessing": preprocessing,
        "calibration": {"source": "paint (train)", "images": 100, "sha256": "ab" * 32},
        "versions": {"keras": "3.15.1"},
    }
    return render(report, made["uint8"], facts | manifest, labels, outcomes), report


class TestPage:
    def test_it_says_the_verdict_and_the_figures(self, files):
        text, report = page(files)
        shown = Page(text).text
        accuracy = report.accuracy
        for words in (
            "tiny, int8",
            "passed",
            f"{accuracy.source_accuracy:.2%}",
            f"{accuracy.exported_accuracy:.2%}",
            f"{accuracy.interval[0]:.2%} to {accuracy.interval[1]:.2%}",
            f"p = {accuracy.p_value:.2g}",
            "Confusion matrix",
            "conv29",
            "CONV_2D",
            "paint (train)",
            f"{len(files[0]['uint8']):,} bytes",
            "3.15.1",
        ):
            assert words in shown

    def test_a_rejection_says_why_and_not_how_to_run_it(self, files):
        text, report = page(files, max_drop=0.0, outcomes=results(seed=1))
        assert not report.passed
        shown = Page(text).text
        assert "rejected" in shown
        assert report.problems[0] in shown
        assert "How to run it" not in shown

    def test_it_needs_nothing_but_itself(self, files):
        parsed = Page(page(files)[0])
        assert not {"script", "link", "img", "iframe", "object", "base"} & set(parsed.tags)
        names = {name for name, _ in parsed.attributes}
        assert not {name for name in names if name.startswith("on") or name in ("src", "href")}
        assert "url(" not in page(files)[0]

    def test_it_fits_a_phone_and_the_dark(self, files):
        text, _ = page(files)
        assert '<meta name="viewport" content="width=device-width' in text
        assert "prefers-color-scheme: dark" in text
        # Whatever is wide scrolls by itself.
        assert text.count("<table") == len(re.findall(r'<div class="scroll"><table', text))

    def test_the_same_export_gives_the_same_page(self, files):
        assert page(files)[0] == page(files)[0]

    def test_how_long_it_takes_is_not_on_it(self, files):
        made, *_ = files
        _, report = page(files)
        repair = Repair(layers=("stem_conv",), tensors=("t",), drop_before=0.2, drop_after=0.0,
                        bytes_before=10, bytes_after=12, tried=2, slowdown=1.75)  # fmt: skip
        report = dataclasses.replace(report, repair=repair)
        shown = Page(render(report, made["uint8"], {})).text
        assert "stem_conv" in shown
        assert "1.75" not in shown

    @pytest.mark.parametrize("classes", [3, 30])
    def test_hostile_names_are_text(self, files, classes):
        labels = [f"{HOSTILE} {i}" for i in range(classes)]
        text, _ = page(files, labels, model=HOSTILE, calibration={"source": HOSTILE, "images": 1},
                       versions={HOSTILE: HOSTILE})  # fmt: skip
        parsed = Page(text)
        assert "script" not in parsed.tags
        assert "img" not in parsed.tags
        assert labels[0] in parsed.text
        assert f"{HOSTILE}, int8" in parsed.text

    @given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
    @settings(max_examples=20, deadline=None)
    def test_any_name_is_shown_as_it_is(self, files, name):
        parsed = Page(page(files, labels=(name, "a", "b"), model=name)[0])
        assert parsed.text.count(name) >= 2
        assert set(parsed.tags) == set(Page(page(files)[0]).tags)

    def test_of_many_classes_those_that_lose_most_are_listed(self, files):
        labels = [f"class {i:03}" for i in range(200)]
        images = np.repeat(np.arange(200), 5)
        exported = images.copy()
        exported[images == 77] = 0
        outcomes = Outcomes(labels=images, source=images, exported=exported)
        shown = Page(page(files, labels, outcomes=outcomes)[0]).text
        assert "Confusion matrix" not in shown
        listed = re.findall(r"class \d{3}", shown[shown.index("those that lose most first") :])
        assert listed[0] == "class 077"
        assert len(listed) == 20

    def test_a_network_that_gives_features_has_a_page(self, files):
        made, *_ = files
        before = {"C2": np.ones((2, 4))}
        report = judge("float32", "float32", compare(before, before))
        shown = Page(render(report, made["float32"], {"model": "features"})).text
        assert "relative error" in shown
        assert "accuracy was not compared" in shown


class TestInstructions:
    def run(self, content, code, tmp_path):
        """What the Python code prints, in a directory like a bundle with a picture."""
        (tmp_path / "model.tflite").write_bytes(content)
        (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
        printed = io.StringIO()
        with contextlib.chdir(tmp_path), contextlib.redirect_stdout(printed):
            exec(compile(code, "instructions", "exec"), {})
        return printed.getvalue().split()

    @pytest.mark.parametrize("kind", ["float32", "uint8", "int8"])
    def test_the_python_code_names_the_class(self, files, kind, tmp_path):
        made, images, expected, preprocessing = files
        how = {h.platform: h for h in instructions(made[kind], preprocessing)}
        for image, probabilities in zip(images[:3], expected, strict=False):
            Image.fromarray(image).save(tmp_path / "image.jpg", format="png")  # no losses
            label, score = self.run(made[kind], how["Python, with LiteRT alone"].code, tmp_path)
            ours = Runner(made[kind])(image[None])[0]
            assert label == ("red", "green", "blue")[ours.argmax()]
            assert float(score) == pytest.approx(ours.max(), abs=1e-5)
            assert float(score) == pytest.approx(probabilities.max(), abs=0.1)

    def test_phones_and_browsers_are_told_what_they_do_not_take(self, files):
        made, *_, preprocessing = files
        of = {
            kind: {h.platform: h for h in instructions(content, preprocessing)}
            for kind, content in made.items()
        }
        for platform in of["int8"]:
            if "MediaPipe" in platform or "LiteRT.js" in platform:
                assert not of["int8"][platform].code
                assert "int8 in" in of["int8"][platform].remark
                assert of["uint8"][platform].code
                assert of["float32"][platform].code
        js = "Browser, with LiteRT.js"
        assert "Uint8Array" in of["uint8"][js].code
        assert "Float32Array" in of["float32"][js].code
        assert "[1, 32, 32, 3]" in of["uint8"][js].code

    def test_a_microcontroller_gets_exactly_the_operators_that_are_in_the_file(self, files):
        made, *_, preprocessing = files
        *_, micro = instructions(made["int8"], preprocessing)
        added = re.findall(r"operators\.Add(\w+)\(\);", micro.code)
        assert added[:2] == ["Conv2D", "Add"]
        assert {"Pad", "DepthwiseConv2D", "Mean", "FullyConnected", "Softmax"} <= set(added)
        assert f"MicroMutableOpResolver<{len(added)}>" in micro.code
        assert "data.int8[i] = pixels[i] - 128" in micro.code
        *_, micro = instructions(made["float32"], preprocessing)
        assert not micro.code
        assert "io int8" in micro.remark

    def test_fitting_is_told_with_the_sizes_of_the_preprocessing(self, files):
        made, *_, preprocessing = files
        first, *_ = instructions(made["float32"], preprocessing | {"crop": 0.875})
        assert "shorter side is resized to 36 (bilinear" in first.remark
