"""The page in a real browser gives what the Python classifier gives: `make clients`.

Needs `npm ci` in examples/web and here, and Chromium: CHROMIUM names its executable. Screenshots
are left in build/web for looking at.
"""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from zlib import crc32

import numpy as np
import pictures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_resnet import export
from keras_resnet.export.serving import Server
from keras_resnet.preprocessing import Preprocessing, read_image

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "web"
PICTURES = ROOT / "build" / "web"
EXECUTABLE = os.environ.get("CHROMIUM") or shutil.which("chromium") or "chromium"
TOLERANCE = 2 / 256
NAMES = ["float32", "int8", "int8-uint8-scores", "int8-logits", "cifar10"]
# A GPU that the processor imitates, so that WebGPU is there, and a camera that shows a pattern.
IMITATED = [
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
    "--use-fake-device-for-media-stream",
]


class Browser:
    """Chromium, driven through browser.mjs."""

    def __init__(self):
        self._node = subprocess.Popen(
            ["node", "browser.mjs"],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, command, **options):
        self._node.stdin.write(json.dumps({"command": command, **options}) + "\n")
        self._node.stdin.flush()
        answer = json.loads(self._node.stdout.readline() or '{"error": "node has ended"}')
        assert "error" not in answer, answer["error"]
        return answer.get("value")

    def close(self):
        self("close")
        self._node.stdin.close()
        self._node.wait(timeout=60)


@pytest.fixture(scope="module")
def bundles():
    folder = Path(os.environ["BUNDLES"])
    return {name: export.Bundle.open(folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def broken(bundles, tmp_path_factory):
    """Bundles that are changed once they are served: the server finds them whole."""
    folder = tmp_path_factory.mktemp("broken")
    return {
        name: shutil.copytree(bundles["int8"].path, folder / name)
        for name in ("changed", "unreadable", "gone")
    }


@pytest.fixture(scope="module")
def server(bundles, broken):
    paths = [bundle.path for bundle in bundles.values()]
    with Server([*paths, *broken.values()], port=0, page=PAGE) as server:
        model = broken["changed"] / "model.tflite"
        model.write_bytes(model.read_bytes()[:-1])
        unreadable, manifest = b"no network at all", broken["unreadable"] / "manifest.json"
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        facts["sha256"]["model.tflite"] = hashlib.sha256(unreadable).hexdigest()
        manifest.write_text(json.dumps(facts), encoding="utf-8")
        (broken["unreadable"] / "model.tflite").write_bytes(unreadable)
        shutil.rmtree(broken["gone"])
        yield server


@pytest.fixture(scope="module")
def browser(server):
    """One without a GPU and without a camera."""
    browser = Browser()
    browser("open", url=server.url, executable=EXECUTABLE, flags=["--disable-gpu"])
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def imitating(server):
    """One with an imitated GPU and an imitated camera, which the page may use."""
    browser = Browser()
    options = {"flags": IMITATED, "permissions": ["camera"]}
    browser("open", url=server.url, executable=EXECUTABLE, **options)
    yield browser
    browser.close()


def saved_images(arrays, folder):
    """Files of images of the network's size."""
    paths = [folder / f"{number}.png" for number in range(len(arrays))]
    for path, pixels in zip(paths, arrays, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture(scope="module")
def images(bundles, tmp_path_factory):
    """Digits, and colored images, which digits are not."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    colored = coarse.repeat(4, axis=1).repeat(4, axis=2)
    digits, _ = bundles["int8"].golden()
    return saved_images([*digits[:8], *colored], tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def seven(images):
    return images[0]


def check(state, expected):
    """The page shows the five best classes of a classifier, with its probabilities."""
    assert state["message"] == ""
    probabilities = dict(expected)
    shown = state["classes"]
    assert len(shown) == 5
    assert [each["probability"] for each in shown] == sorted(
        (each["probability"] for each in shown), reverse=True
    )
    for each in shown:
        assert each["probability"] == pytest.approx(probabilities[each["label"]], abs=TOLERANCE)
        assert float(each["shown"].rstrip("%")) == pytest.approx(100 * each["probability"], abs=0.1)
    assert shown[0]["label"] == expected[0][0]


@pytest.mark.parametrize("name", NAMES)
def test_it_names_what_keras_and_the_python_classifier_name(
    name, browser, bundles, images, tmp_path
):
    classifier = export.Classifier(bundles[name])
    golden, expected = bundles[name].golden()
    paths = saved_images(golden, tmp_path)
    browser("select", id="bundle", label=name)
    found = []
    for path in [*images, *paths]:
        state = browser("choose", path=str(path))
        assert state["name"] == path.name
        check(state, classifier(path, top=None))
        found.append(state["classes"][0]["label"])
    labels = np.array(classifier.labels)
    assert found[len(images) :] == list(labels[expected.argmax(axis=1)])


def fitted(browser, pixels, preprocessing, shape):
    """What pixels.js makes of an image of three channels."""
    height, width, _ = pixels.shape
    four = np.dstack([pixels, np.full((height, width), 255, np.uint8)])
    image = {"width": width, "height": height, "data": base64.b64encode(four).decode()}
    answer = browser(
        "fit",
        module=str(PAGE / "pixels.js"),
        image=image,
        preprocessing=preprocessing.to_dict(),
        shape=shape,
    )
    return np.frombuffer(base64.b64decode(answer), np.uint8).reshape(shape)


@settings(max_examples=150)
@given(
    image=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40))
    | st.integers(1, 40).map(lambda x: (x, x)),
    channels=st.sampled_from([1, 3]),
    crop=st.sampled_from([1.0, 0.95, 0.875, 0.5]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_images_are_fitted_as_in_python_to_the_last_bit(
    browser, image, size, channels, crop, interpolation, seed
):
    preprocessing = Preprocessing(crop=crop, interpolation=interpolation)
    pixels = np.random.default_rng(seed).integers(0, 256, (*image, 3), np.uint8)
    expected = preprocessing.fit(pixels, size, channels)
    actual = fitted(browser, pixels, preprocessing, (*size, channels))
    np.testing.assert_array_equal(actual, expected)


DECODE = """
(async () => {
  const {decode, pixelsOf} = await import("/pixels.js");
  const bytes = Uint8Array.from(atob(CONTENT), (letter) => letter.charCodeAt(0));
  const {width, height, data} = pixelsOf(await decode(new Blob([bytes])));
  return {width, height, data: btoa(String.fromCharCode(...data))};
})()
"""


def decoded(browser, content):
    """What the page makes of an image file."""
    code = DECODE.replace("CONTENT", json.dumps(base64.b64encode(content).decode()))
    image = browser("evaluate", code=code)
    pixels = np.frombuffer(base64.b64decode(image["data"]), np.uint8)
    return pixels.reshape(image["height"], image["width"], 4)[..., :3]


def photograph(transparent=False):
    rows, columns = np.mgrid[:50, :70]
    waves = [np.sin(columns / 9 + rows / 17), np.cos(columns / 23), np.sin(rows / 7)]
    noise = np.random.default_rng(0)
    pixels = 127 + 120 * np.stack(waves, axis=-1) + noise.normal(0, 8, (50, 70, 3))
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    if transparent:
        pixels = np.dstack([pixels, noise.integers(0, 256, (50, 70), np.uint8)])
    return Image.fromarray(pixels)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_gamma(png, gamma=1.0):
    """A PNG whose color management would change every pixel."""
    chunk = b"gAMA" + struct.pack(">I", round(100_000 * gamma))
    where = 33  # behind the signature and the header
    return png[:where] + struct.pack(">I4s4sI", 4, chunk[:4], chunk[4:], crc32(chunk)) + png[where:]


OPAQUE, TRANSPARENT = photograph(), photograph(transparent=True)
FILES = {
    "PNG": saved(OPAQUE, "PNG"),
    "PNG, transparent": saved(TRANSPARENT, "PNG"),
    "PNG, palette": saved(OPAQUE.quantize(64), "PNG", transparency=3),
    "PNG, 16-bit grey": saved(Image.fromarray(np.asarray(OPAQUE)[..., 0] * np.uint16(257)), "PNG"),
    "PNG with a gamma": with_gamma(saved(OPAQUE, "PNG")),
    "JPEG": saved(OPAQUE, "JPEG", quality=75),
    "JPEG, progressive": saved(OPAQUE, "JPEG", quality=90, progressive=True),
    "JPEG, grey": saved(OPAQUE.convert("L"), "JPEG"),
    "JPEG, CMYK": saved(OPAQUE.convert("CMYK"), "JPEG"),
    **{f"JPEG, orientation {i}": saved(OPAQUE, "JPEG", exif=turned(i)) for i in range(2, 9)},
    "WebP": saved(OPAQUE, "WEBP"),
    "WebP, transparent": saved(TRANSPARENT, "WEBP", lossless=True),
    "GIF": saved(OPAQUE.quantize(64), "GIF"),
    "BMP": saved(OPAQUE, "BMP"),
}


@pytest.mark.parametrize("kind", FILES)
def test_image_files_are_read_as_in_python_to_the_last_bit(kind, browser):
    np.testing.assert_array_equal(decoded(browser, FILES[kind]), read_image(FILES[kind]))


def test_a_picture_too_large_for_a_canvas_of_a_phone_is_read_in_strips(browser):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    large = Image.fromarray(pixels).resize((3001, 3003), Image.Resampling.NEAREST)
    code = DECODE.replace("CONTENT", json.dumps(base64.b64encode(saved(large, "PNG")).decode()))
    # Nine million pixels are too many to hand over: their digest is compared.
    code = re.sub(r"btoa\(.*?\)\)", "await digest(data.filter((_, i) => i % 4 < 3))", code)
    code = f"""
    const digest = async (data) => {{
      const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
      return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    }};
    {code}
    """
    assert browser("evaluate", code=code) == {
        "width": 3001,
        "height": 3003,
        "data": hashlib.sha256(np.asarray(large).tobytes()).hexdigest(),
    }


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_images_may_be_dropped_and_pasted(how, browser, bundles, images, seven):
    browser("select", id="bundle", label="int8")
    browser("choose", path=str(images[1]))
    state = browser("hand", how=how, path=str(seven))
    assert state["name"] == seven.name
    check(state, export.Classifier(bundles["int8"])(seven, top=None))
    state = browser("hand", how=how)
    assert "no file" in state["message"]
    assert state["name"] == seven.name


def test_a_large_image_is_fitted_and_another_network_sees_it_too(browser, bundles, tmp_path):
    path = tmp_path / "large.jpg"
    Image.fromarray(np.asarray(TRANSPARENT)[..., :3]).resize((901, 603)).save(path)
    browser("select", id="bundle", label="int8")
    check(browser("choose", path=str(path)), export.Classifier(bundles["int8"])(path, top=None))
    state = browser("select", id="bundle", label="float32")
    assert "float32" in state["facts"]
    check(state, export.Classifier(bundles["float32"])(path, top=None))


@pytest.mark.parametrize("content", [b"", b"no image", saved(OPAQUE, "PNG")[:100]])
def test_a_broken_image_is_named_and_the_page_goes_on(content, browser, bundles, seven, tmp_path):
    browser("select", id="bundle", label="int8")
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    state = browser("choose", path=str(path))
    assert state["message"] == "broken.png is no image that this browser can read."
    assert state["classes"] == []
    state = browser("choose", path=str(seven))
    check(state, export.Classifier(bundles["int8"])(seven, top=None))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("changed", "model.tflite is not the file that was exported. Export the bundle again."),
        ("unreadable", "Failed to load model"),
        ("gone", "cannot be fetched: status 404."),
    ],
)
def test_a_broken_bundle_is_named_and_the_page_goes_on(name, message, browser, bundles, seven):
    browser("choose", path=str(seven))
    state = browser("select", id="bundle", label=name)
    assert state["message"].startswith(f"The bundle {name} cannot be used. ")
    assert message in state["message"]
    assert (state["classes"], state["facts"]) == ([], "")
    state = browser("select", id="bundle", label="float32")
    check(state, export.Classifier(bundles["float32"])(seven, top=None))


def test_without_a_camera_it_says_so(browser, seven):
    browser("click", role="button", name="Use camera")
    assert "camera" in browser("state")["message"]
    assert browser("choose", path=str(seven))["message"] == ""


def test_everything_can_be_done_with_the_keyboard(server, browser, bundles, images):
    browser("visit", url=server.url)
    for expected in ("bundle", "accelerator", "file", "camera"):
        assert browser("press", keys=["Tab"])["id"] == expected
    assert browser("press", keys=["Shift+Tab"])["id"] == "file"
    state = browser("choose_by_key", key="Space", path=str(images[2]))
    check(state, export.Classifier(bundles["float32"])(images[2], top=None))
    focused = browser("press", keys=["Shift+Tab", "Shift+Tab"])
    assert focused == {"id": "bundle", "outline": "solid"}
    browser("press", keys=["ArrowDown"])
    state = browser("state")
    assert "int8" in state["facts"]
    check(state, export.Classifier(bundles["int8"])(images[2], top=None))


def test_wasm_has_threads(browser, seven):
    browser("select", id="bundle", label="int8")
    assert browser("evaluate", code="crossOriginIsolated")
    threads = min(browser("evaluate", code="navigator.hardwareConcurrency"), 4)
    status = browser("choose", path=str(seven))["status"]
    assert re.search(rf"^\d+\.\d ms on WASM, {threads} thread", status)


@pytest.mark.parametrize("name", NAMES)
def test_webgpu_gives_the_same_or_is_not_used(name, imitating, bundles, images):
    """Where a GPU is imitated, "automatic" leaves it alone."""
    imitating("select", id="accelerator", label="Automatic")
    state = imitating("select", id="bundle", label=name)
    assert "WASM" in imitating("choose", path=str(images[0]))["status"]
    state = imitating("select", id="accelerator", label="WebGPU")
    assert ("WebGPU" in state["status"]) != ("WebGPU" in state["facts"]), state
    if name == "float32":
        assert "ms on WebGPU;" in state["status"]
    classifier = export.Classifier(bundles[name])
    for path in images[::4]:
        check(imitating("choose", path=str(path)), classifier(path, top=None))


def test_the_camera_is_watched_until_it_is_stopped(imitating, seven):
    imitating("click", role="button", name="Use camera")
    imitating("wait_for", selector="#video:not([hidden])")
    imitating("wait_for", selector="#name:text-is('Camera')")
    look(imitating, "camera", 360, 800, "dark")
    imitating("click", role="button", name="Stop camera")
    imitating("wait_for", selector="#hint:not([hidden])")
    assert imitating("evaluate", code="document.querySelector('video').srcObject") is None
    assert imitating("choose", path=str(seven))["name"] == seven.name


def look(browser, name, width, height, scheme):
    """Leaves a screenshot; the page may not be wider than the screen."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}-{scheme}.png"
    options = {"width": width, "height": height, "scheme": scheme, "path": str(path)}
    assert browser("look", **options) <= width
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width", "height"), [("desktop", 1100, 760), ("phone", 360, 800)])
def test_it_fits_the_screen(name, width, height, scheme, browser, seven, tmp_path, server):
    state = browser("visit", url=server.url)
    assert state["classes"] == []
    look(browser, f"{name}-empty", width, height, scheme)
    path = tmp_path / f"{'a_very_long_name_' * 10}.png"
    shutil.copy(seven, path)
    assert len(browser("choose", path=str(path))["classes"]) == 5
    look(browser, f"{name}-long", width, height, scheme)
    browser("choose", path=str(seven))
    look(browser, name, width, height, scheme)
    assert browser("select", id="bundle", label="changed")["message"]
    look(browser, f"{name}-error", width, height, scheme)


def test_a_drawn_ship_is_a_ship_in_the_picture_of_the_readme(browser, server, tmp_path):
    pictures.main([str(tmp_path)])
    browser("visit", url=server.url)
    browser("select", id="bundle", label="cifar10")
    assert browser("choose", path=str(tmp_path / "ship.png"))["classes"][0]["label"] == "ship"
    look(browser, "readme", 760, 640, "light")


def test_nothing_left_this_machine_and_nothing_went_wrong_unseen(server, browser, imitating):
    """Of all that was done above: this test is the last one."""
    for used in (browser, imitating):
        code = "fetch('https://example.com/').then(() => 'answered', (error) => error.name)"
        assert used("evaluate", code=code) == "TypeError"
        log = used("log")
        assert log["errors"] == []
        outside = [
            url for url in log["requests"] if not url.startswith((server.url, "blob:", "data:"))
        ]
        assert outside == [], "the policy should have stopped these"
        # LiteRT.js logs what it does as errors.
        errors = [each["text"] for each in log["console"] if each["type"] == "error"]
        unexpected = [
            text
            for text in errors
            if not text.startswith(("INFO: ", "WARNING: "))
            and "example.com" not in text
            and "status of 404" not in text  # of the bundle that is gone
        ]
        assert unexpected == []
