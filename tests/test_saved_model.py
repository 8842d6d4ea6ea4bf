"""A served network reads image files as the rest of the package does, without any of it."""

import io
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from processes import run_python
from tflite_files import noise, small
from toys import SMALL, warmed

import keras_resnet
from keras_resnet import export
from keras_resnet.export import decoding
from keras_resnet.export.source import SourceNetwork
from keras_resnet.preprocessing import Preprocessing, read_image

PHOTO = Image.fromarray(noise(1, shape=(9, 7, 3))[0]).resize((70, 50))


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def with_orientation(number):
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x0112] = number
    return encoded(PHOTO, "JPEG", exif=exif, quality=90)


def with_alpha(mode):
    picture = PHOTO.convert("RGBA")
    picture.putalpha(Image.fromarray(noise(1, shape=(50, 70))[0]))
    return encoded(picture.convert(mode))


FILES = {
    "png": encoded(PHOTO),
    "jpeg": encoded(PHOTO, "JPEG"),
    "progressive jpeg": encoded(PHOTO, "JPEG", progressive=True, icc_profile=b"x" * 200_000),
    "grey jpeg": encoded(PHOTO.convert("L"), "JPEG"),
    "grey png": encoded(PHOTO.convert("L")),
    "black and white png": encoded(PHOTO.convert("1")),
    "16-bit png": encoded(Image.fromarray(noise(1, shape=(20, 30))[0] * np.uint16(257))),
    "transparent png": with_alpha("RGBA"),
    "transparent grey png": with_alpha("LA"),
    "palette png": encoded(PHOTO.convert("P"), transparency=3),
    **{f"jpeg turned {number}": with_orientation(number) for number in range(1, 9)},
}


@pytest.fixture(scope="module")
def decode():
    return tf.function(decoding.decode, input_signature=[tf.TensorSpec((), tf.string)])


@pytest.mark.parametrize("name", FILES)
def test_files_are_decoded_as_pillow_does(decode, name):
    np.testing.assert_array_equal(decode(FILES[name]).numpy(), read_image(FILES[name]))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", FILES["jpeg"][:300], FILES["png"][:200],
                                     b"\xff\xd8\xff\xe1\xff\xff", b"what is this?" * 9])  # fmt: skip  # noqa: E501
def test_what_is_no_image_is_an_error_of_the_request(decode, content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(content)


@pytest.mark.parametrize(
    ("interpolation", "crop", "shape"),
    [
        ("bilinear", 1.0, (32, 32, 3)),
        ("bicubic", 1.0, (48, 40, 3)),
        ("bilinear", 0.875, (40, 64, 1)),
        ("bicubic", 0.875, (96, 96, 3)),
    ],
)
def test_images_of_any_size_are_fitted_as_pillow_does(interpolation, crop, shape):
    preprocessing = Preprocessing(interpolation=interpolation, crop=crop)
    fit = tf.function(
        lambda image: decoding.fit(image, shape, preprocessing),
        input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)],
    )
    # Smaller, larger, of another shape, of the size itself, and on either side of twice as high.
    sides = (1, 17, 32, 33, 96, 109, 200)
    sizes = [*itertools.product(sides, sides), (40, 20), (41, 20), (200, 99), (31, 15), (640, 480)]
    for number, size in enumerate(sizes):
        image = noise(1, seed=number, shape=(*size, 3))[0]
        expected = preprocessing.fit(image, shape[:2], shape[2])
        np.testing.assert_array_equal(fit(image).numpy(), expected, err_msg=str(size))


def test_it_serves_files_and_pixels_without_this_package(tmp_path):
    model = warmed(
        keras_resnet.create_model(
            SMALL, preprocessing=Preprocessing.named("caffe", crop=0.875, interpolation="bicubic")
        )
    )
    assert export.to_saved_model(model, tmp_path / "served") == tmp_path / "served"
    with pytest.raises(FileExistsError, match="force"):
        export.to_saved_model(model, tmp_path / "served")
    for name in ("jpeg", "transparent png", "jpeg turned 6"):
        (tmp_path / f"{name}.img").write_bytes(FILES[name])
    script = """
        import pathlib, sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"keras_resnet", "PIL"}:
                    raise ModuleNotFoundError(name, name=name)
        sys.meta_path.insert(0, Refuse())
        import numpy as np, tensorflow as tf
        serve = tf.saved_model.load("served").signatures
        files = [path.read_bytes() for path in sorted(pathlib.Path(".").glob("*.img"))]
        of_files = serve["serve_bytes"](images=tf.constant(files))["probabilities"]
        pixels = tf.constant(np.load("pixels.npy").astype(np.float32))
        of_pixels = serve["serving_default"](pixels=pixels)["probabilities"]
        np.save("out.npy", np.stack([of_files, of_pixels]))
    """
    paths = sorted(tmp_path.glob("*.img"))
    pixels = np.stack([model.preprocessing.fit(path, (32, 32)) for path in paths])
    np.save(tmp_path / "pixels.npy", pixels)
    run_python(script, cwd=tmp_path)
    expected = model.predict_on_batch(model.preprocessing(pixels))
    for actual in np.load(tmp_path / "out.npy"):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_it_gives_logits_or_features_when_asked(tmp_path):
    pixels = tf.constant(noise(2).astype(np.float32))

    def served(model, outputs):
        path = export.to_saved_model(model, tmp_path / outputs, outputs=outputs)
        loaded = tf.saved_model.load(str(path))
        return loaded, loaded.signatures["serving_default"](pixels=pixels)

    expected = small().predict_on_batch(pixels / 128 - 1)
    kept, outputs = served(small(), "logits")
    assert set(outputs) == {"logits"}
    np.testing.assert_allclose(tf.nn.softmax(outputs["logits"]), expected, atol=1e-5)

    features = keras_resnet.feature_model(SMALL, input_shape=(32, 32, 3))
    kept, outputs = served(features, "features")
    expected = features.predict_on_batch(pixels / 128 - 1)
    assert set(outputs) == {"C2", "C3", "C4"}
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], array, rtol=1e-4, atol=1e-5)
    del kept


def test_a_fault_in_reading_files_is_rejected_and_leaves_nothing(tmp_path, monkeypatch):
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda contents: decode(contents)[..., ::-1])
    with pytest.raises(export.ExportRejected):
        export.to_saved_model(small(), tmp_path / "served")
    assert list(tmp_path.iterdir()) == []


def test_what_differs_is_rejected_and_what_was_there_stays(tmp_path, monkeypatch):
    class Faulty(SourceNetwork):
        def probabilities(self, pixels):
            return super().probabilities(pixels[..., ::-1])

    (tmp_path / "served").mkdir()  # an empty directory may be replaced
    monkeypatch.setattr("keras_resnet.export.saved_model.SourceNetwork", Faulty)
    with pytest.raises(export.ExportRejected):
        export.to_saved_model(small(), tmp_path / "served", force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["served"]


def test_one_channel_files_are_served(tmp_path):
    keras.utils.set_random_seed(0)
    model = warmed(keras_resnet.create_model(SMALL, input_shape=(32, 32, 1)))
    path = export.to_saved_model(model, tmp_path / "served")
    serve = tf.saved_model.load(str(path)).signatures["serve_bytes"]
    actual = serve(images=tf.constant([FILES["jpeg"]]))["probabilities"].numpy()
    pixels = model.preprocessing.fit(FILES["jpeg"], (32, 32), 1)
    expected = model.predict_on_batch(model.preprocessing(pixels[None]))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
