"""What a target gets by default and what it refuses, told before anything is written."""

import pytest
from tflite_files import noise, small

from keras_resnet import export
from keras_resnet.export.bundle import Bundle
from keras_resnet.export.evidence import Evidence
from keras_resnet.export.presets import PRESETS, TargetError, TargetWarning, get_preset
from keras_resnet.export.targets import TARGETS

pytestmark = pytest.mark.filterwarnings(
    "ignore::keras_resnet.export.calibration.CalibrationWarning"
)


def to_tflite(path, **options):
    return export.to_tflite(small(), path, **({"calibration": noise(8), "max_drop": 1} | options))


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    return to_tflite(tmp_path_factory.mktemp("bundles") / "default", target="web")


@pytest.mark.parametrize("name", ["pi", "android", "web"])
def test_the_default_file_suits_phones_browsers_and_boards(default, name):
    assert get_preset(name).slow(default.model_path.read_bytes()) == ()
    source, (target,) = default.manifest["input"], default.manifest["outputs"]
    assert (source["dtype"], target["dtype"]) == ("uint8", "float32")
    assert source["shape"] == [1, 32, 32, 3]


def test_the_manifest_names_the_target(default):
    assert default.manifest["converter"]["target"] == "web"
    assert not list(default.path.glob("model.cc"))


def test_a_microcontroller_gets_int8_at_both_ends_and_cpp_source(tmp_path):
    bundle = to_tflite(tmp_path / "micro", target="tflm")
    source, (target,) = bundle.manifest["input"], bundle.manifest["outputs"]
    assert (source["dtype"], target["dtype"]) == ("int8", "int8")
    assert bundle.manifest["converter"]["io"] == "int8"
    size = bundle.model_path.stat().st_size
    assert f"g_model_size = {size};" in (bundle.path / "model.cc").read_text()
    assert (bundle.path / "model.h").is_file()
    assert Bundle.open(bundle.path).manifest == bundle.manifest


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ("web", {"io": "int8"}, "LiteRT.js takes and gives float32, int32 and uint8 only"),
        ("web", {"batch": "dynamic"}, "An input's shape is open"),
        ("android", {"io": "int8"}, "ImageClassifier takes and gives float32 and uint8 only"),
        ("android", {"batch": 2}, "ImageClassifier feeds one RGB image"),
        ("tflm", {"scheme": "dynamic_int8"}, "8-bit weights with float32 activations"),
        ("tflm", {"scheme": "float32"}, "export it with scheme 'int8'"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    tmp_path, monkeypatch, target, options, reason
):
    def verdict(*_):
        raise AssertionError("the accuracy is measured of a file that is refused anyway")

    monkeypatch.setattr(Evidence, "verdict", verdict)
    with pytest.raises(ValueError, match=reason):
        to_tflite(tmp_path / "refused", target=target, **options)
    assert not list(tmp_path.iterdir())


def test_the_findings_come_with_the_refusal(tmp_path):
    with pytest.raises(TargetError, match="Target 'web' does not take the file") as refusal:
        to_tflite(tmp_path / "refused", target="web", io="int8")
    (finding,) = refusal.value.findings
    assert finding.rule == "input-output-type"


def test_what_runs_slowly_is_a_warning(tmp_path):
    with pytest.warns(TargetWarning, match="not-delegated"):
        bundle = to_tflite(tmp_path / "slow", scheme="int16x8", target="pi")
    assert bundle.scheme == "int16x8"


def test_what_was_asked_for_is_kept_where_it_works(tmp_path):
    bundle = to_tflite(tmp_path / "float", scheme="float32", target="pi", batch="dynamic")
    assert bundle.scheme == "float32"
    assert bundle.manifest["input"]["shape"][0] == -1


def test_an_unknown_target_is_named_with_those_that_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"'pi', 'android', 'web', 'tflm'.*Received: 'iphone'"):
        to_tflite(tmp_path / "none", target="iphone")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_choice_is_told_with_its_reason_in_a_line(preset):
    assert set(preset.runtimes) <= set(TARGETS)
    lines = preset.explain(scheme="int8", io="auto", batch=1).splitlines()
    assert [line.split()[1] for line in lines] == ["scheme", "io", "batch"]
    assert all(line.startswith(f"{preset.name}: ") for line in lines)


def test_a_choice_that_the_user_made_is_not_told_as_the_target_s():
    told = get_preset("tflm").explain(scheme="int8", io="uint8", batch=1)
    assert "io" not in [line.split()[1] for line in told.splitlines()]
    assert get_preset("pi").explain(scheme="float32", io="auto", batch=4) == ""
