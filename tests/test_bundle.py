"""A bundle is what was exported, to the last bit, and the same export gives the same bits."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python
from tflite_files import SHAPE, float_file, noise, small

from keras_resnet import export
from keras_resnet.export import bundle as bundles
from keras_resnet.export.bundle import Bundle, BundleError, write_files
from keras_resnet.export.metadata import add_metadata, read_metadata
from keras_resnet.preprocessing import Preprocessing

LABELS = tuple(f"Ziffer {i} 数" for i in range(10))
FILES = ("model.tflite", "labels.txt", "golden.npz", "report.html", "manifest.json")


@pytest.fixture(scope="module")
def content():
    return add_metadata(float_file(small()), LABELS, name="small", description="Digits.")


@pytest.fixture(scope="module")
def golden():
    pixels = noise(4, seed=3)
    return pixels, small().predict_on_batch(pixels / np.float32(128) - 1)


def facts():
    return {
        "model": "small",
        "scheme": "float32",
        "preprocessing": Preprocessing().to_dict(),
        "verification": {},
    }


@pytest.fixture(scope="module")
def whole(content, golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle")
    write_files(path, content, LABELS, golden, facts(), report_html="<p>größer</p>\n")
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "b")


class TestManifest:
    def test_it_tells_what_the_file_is(self, whole):
        manifest = json.loads((whole / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["schema_version"] == 2
        assert manifest["classes"] == 10
        assert manifest["input"]["shape"] == [1, *SHAPE]
        assert manifest["input"]["dtype"] == "float32"
        assert manifest["input"]["content"] == "raw RGB pixels 0..255"
        (output,) = manifest["outputs"]
        assert (output["shape"], output["dtype"]) == ([1, 10], "float32")
        assert manifest["operators"]["CONV_2D"] >= 7
        assert manifest["operators"]["SOFTMAX"] == 1
        assert manifest["golden"]["images"] == 4

    def test_a_bundle_gives_back_what_was_put_in(self, whole, content, golden):
        bundle = Bundle.open(whole)
        assert bundle.model_path.read_bytes() == content
        assert bundle.labels == LABELS == read_metadata(content).labels
        assert bundle.input_shape == SHAPE
        assert bundle.preprocessing == Preprocessing()
        assert bundle.report_path.read_text(encoding="utf-8") == "<p>größer</p>\n"
        for stored, given_ in zip(bundle.golden(), golden, strict=True):
            np.testing.assert_array_equal(stored, given_)
        assert export.verify(whole).passed

    def test_a_report_is_optional(self, content, golden, tmp_path):
        write_files(tmp_path, content, LABELS, golden, facts())
        assert Bundle.open(tmp_path).report_path is None

    def test_features_are_kept_by_name(self, content, golden, tmp_path):
        features = {"C2": np.ones((4, 8, 8, 2)), "embedding": np.zeros((4, 7))}
        write_files(tmp_path, content, (), (golden[0], features), facts())
        bundle = Bundle.open(tmp_path)
        assert bundle.labels == ()
        assert bundle.manifest["classes"] is None
        stored = bundle.golden()[1]
        assert stored.keys() == features.keys()
        np.testing.assert_array_equal(stored["C2"], features["C2"])
        with pytest.raises(BundleError, match="gives features"):
            export.Classifier(tmp_path)

    def test_figures_that_json_lacks_are_refused(self, content, golden, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            write_files(tmp_path, content, LABELS, golden, facts() | {"drop": float("nan")})


class TestSameBytes:
    def test_files_written_twice_are_equal(self, whole, content, golden, tmp_path):
        write_files(tmp_path, content, LABELS, golden, facts(), report_html="<p>größer</p>\n")
        assert bytes_of(tmp_path) == bytes_of(whole)

    def test_a_model_that_was_saved_in_between_gives_the_same_bundle(self, tmp_path):
        schemes = ("float32", "int8")
        small().save(tmp_path / "model.keras")
        np.save(tmp_path / "pictures.npy", pictures(100))
        for scheme in schemes:
            export.to_tflite(small(), tmp_path / scheme, scheme, calibration=pictures(100))
        # Another process has other addresses, another order of sets, and has counted other models.
        script = """
            import sys
            import keras
            import numpy as np
            import keras_resnet
            from keras_resnet import export
            for _ in range(7):
                keras.Sequential()
            keras.Model(x := keras.Input((1,)), x)
            images = np.load("pictures.npy")
            model = keras_resnet.load_model("model.keras")
            for scheme in sys.argv[1:]:
                export.to_tflite(model, f"loaded_{scheme}", scheme, calibration=images)
        """
        run_python(script, *schemes, cwd=tmp_path, PYTHONHASHSEED="1")
        for scheme in schemes:
            assert bytes_of(tmp_path / scheme) == bytes_of(tmp_path / f"loaded_{scheme}")

    def test_the_digest_of_weights_sees_every_value_and_its_place(self):
        weights = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(2, np.float32)]
        first = bundles.array_digest(weights)
        assert bundles.array_digest([w.copy() for w in weights]) == first
        changed = [w.copy() for w in weights]
        changed[1][0] = np.nextafter(np.float32(0), np.float32(1))
        others = [changed, weights[::-1], [weights[0].T, weights[1]], [w[None] for w in weights]]
        assert len({first, *map(bundles.array_digest, others)}) == 5


def pictures(count):
    """Smooth images, which calibration does not take for noise."""
    return noise(count, shape=(8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)


def bytes_of(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


class TestChanges:
    @settings(max_examples=300)
    @given(
        name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7)
    )
    def test_one_changed_bit_anywhere_is_noticed(self, whole, name, place, bit):
        file = whole / name
        before = file.read_bytes()
        content = bytearray(before)
        content[int(place * len(content))] ^= 1 << bit
        file.write_bytes(content)
        try:
            with pytest.raises(BundleError, match=name.replace(".", r"\.") + "|schema version"):
                export.verify(whole)
        finally:
            file.write_bytes(before)

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_that_is_cut_or_gone_is_noticed(self, copy, name):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1])
        with pytest.raises(BundleError, match=f"{name} (was changed|is damaged)"):
            Bundle.open(copy)
        (copy / name).unlink()
        with pytest.raises(BundleError, match=f"has no {name}"):
            Bundle.open(copy)

    def test_a_change_that_json_does_not_see_is_a_change(self, copy):
        text = (copy / "manifest.json").read_bytes()
        (copy / "manifest.json").write_bytes(text.replace(b"\n", b"\r\n"))
        with pytest.raises(BundleError, match=r"manifest\.json was changed"):
            Bundle.open(copy)

    @pytest.mark.parametrize("listed", ["../../secret", "/etc/passwd", "notes.txt"])
    def test_a_manifest_lists_the_files_of_a_bundle_and_no_others(self, copy, listed):
        rewrite(copy, lambda manifest: manifest["sha256"].update({listed: "0" * 64}))
        with pytest.raises(BundleError, match="is damaged: a bundle holds"):
            Bundle.open(copy)

    def test_golden_vectors_are_never_code(self, copy):
        np.savez(copy / "golden.npz", inputs=np.array([print]), expected=np.zeros((1, 10)))
        new = hashlib.sha256((copy / "golden.npz").read_bytes()).hexdigest()
        rewrite(copy, lambda manifest: manifest["sha256"].update({"golden.npz": new}))
        with pytest.raises(ValueError, match="allow_pickle=False"):
            Bundle.open(copy).golden()

    @pytest.mark.parametrize(
        "text", ["", "{]", "[]", "7", '{"schema_version": 2}', '{"schema_version": 2, "sha256": 5}',
                 '{"schema_version": "2", "sha256": {}}', '{"schema_version": -1, "sha256": {}}',
                 '{"schema_version": true, "sha256": {}}', "[" * 100_000, '"\\ud800"',
                 '{"schema_version": 2, "sha256": {}, "x": "\\ud800"}']
    )  # fmt: skip
    def test_what_is_no_manifest_is_damaged(self, copy, text):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(BundleError, match="is damaged"):
            Bundle.open(copy)


def rewrite(path, change):
    """Changes a manifest as someone would who knows how its digest is made."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    files = {name: value for name, value in manifest["sha256"].items() if name != "manifest.json"}
    text = json.dumps({**manifest, "sha256": files}, sort_keys=True)
    manifest["sha256"]["manifest.json"] = hashlib.sha256(text.encode()).hexdigest()
    text = json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    (path / "manifest.json").write_bytes(text.encode())


def test_verifying_takes_litert_and_numpy_alone(whole):
    script = f"""
        import sys
        allowed = {{"ai_edge_litert", "flatbuffers", "keras_resnet", "numpy"}}
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in allowed:
                    raise ModuleNotFoundError(name, name=name)
        sys.meta_path.insert(0, Refuse())
        from keras_resnet import cli, export
        assert export.verify({str(whole)!r}).passed
        assert cli.main(["verify", {str(whole)!r}]) == 0
    """
    run_python(script)


class TestVersions:
    @pytest.fixture
    def version_1(self, golden, tmp_path):
        """A bundle as version 1 wrote them, by hand: one output, no metadata, plain npz."""
        path = tmp_path / "old"
        path.mkdir()
        (path / "model.tflite").write_bytes(float_file(small()))
        (path / "labels.txt").write_text("".join(f"{name}\n" for name in LABELS), encoding="utf-8")
        np.savez_compressed(path / "golden.npz", inputs=golden[0], expected=golden[1])
        parity = {"images": 4, "max_difference": 0.0, "total_variation": 0.0, "top1_agreement": 1.0}
        manifest = {
            "schema_version": 1,
            "model": "small",
            "architecture": None,
            "scheme": "float32",
            "input": {"name": "pixels", "shape": [1, *SHAPE], "dtype": "float32",
                      "content": "raw RGB pixels 0..255"},
            "output": {"name": "probabilities", "shape": [1, 10], "dtype": "float32",
                       "content": "probabilities"},
            "preprocessing": Preprocessing().to_dict(),
            "calibration": None,
            "verification": {"scheme": "float32", "parity": parity, "accuracy": None,
                             "problems": [], "passed": True},
            "versions": {"keras_resnet": "0.1.0"},
            "sha256": {name: hashlib.sha256((path / name).read_bytes()).hexdigest()
                       for name in ("model.tflite", "labels.txt", "golden.npz")},
        }  # fmt: skip
        text = json.dumps(manifest, sort_keys=True)
        manifest["sha256"]["manifest.json"] = hashlib.sha256(text.encode()).hexdigest()
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (path / "manifest.json").write_text(text, encoding="utf-8")
        return path

    def test_an_older_bundle_opens_classifies_and_verifies(self, version_1, golden):
        bundle = Bundle.open(version_1)
        assert bundle.labels == LABELS
        assert bundle.outputs == ("probabilities",)
        assert bundle.manifest["classes"] == 10
        assert bundle.manifest["operators"] is None
        assert bundle.report_path is None
        assert bundle.verification.passed
        classifier = export.Classifier(version_1)
        assert classifier(golden[0][0])[0][0] == LABELS[golden[1][0].argmax()]
        assert export.verify(version_1).passed

    def test_an_older_bundle_that_was_changed_is_noticed(self, version_1):
        text = (version_1 / "manifest.json").read_text(encoding="utf-8")
        (version_1 / "manifest.json").write_text(text.replace("raw RGB", "raw BGR"))
        with pytest.raises(BundleError, match="was changed"):
            Bundle.open(version_1)

    def test_a_newer_bundle_says_what_to_do(self, copy):
        rewrite(copy, lambda manifest: manifest.update(schema_version=3))
        with pytest.raises(BundleError, match=r"schema version 3.*reads up to 2.*newer"):
            Bundle.open(copy)
