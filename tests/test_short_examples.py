"""The short examples run without arguments, and do what they say; all but the workers in here."""

import contextlib
import json
import re

import build_networks
import deeper
import detector_features
import distill
import export_and_classify
import fine_tune
import numpy as np
import own_architecture
import pictures
import pytest
import quantization_aware
import several_workers
import train_folder

import keras_resnet
from keras_resnet import export, training


@pytest.fixture(scope="module", autouse=True)
def directory(tmp_path_factory):
    """An empty one, in which all of them run."""
    path = tmp_path_factory.mktemp("examples")
    with contextlib.chdir(path):
        yield path


@pytest.fixture(scope="module")
def folder_run(directory):
    train_folder.main([])
    return training.load_run("runs/train_folder")


def accuracy_of(run):
    return run.info["test"]["accuracy"]


def test_networks_are_built_and_drawn_stage_by_stage(capsys):
    build_networks.main()
    out = capsys.readouterr().out
    assert "resnet50_v2       25,568,360 parameters" in out
    stages = re.findall(r"^(\w+) +([\dx ]+\d)(?:  (#+))?$", out, re.MULTILINE)
    assert [name for name, *_ in stages] == ["stem", "C2", "C3", "C4", "C5", "head"]
    assert stages[4][1] == "5 x 5 x 2048"
    # The paper's table 1 gives the stages 9, 12, 18 and 9 convolutions of about equal work.
    assert [round(len(bar) / len(stages[1][2]), 1) for _, _, bar in stages[1:5]] == [
        1,
        1.4,
        2.1,
        1.1,
    ]


def test_drawn_photographs_are_a_folder_of_classes(tmp_path, capsys):
    pictures.main([str(tmp_path / "drawn"), "--each", "2"])
    files = {path.relative_to(tmp_path / "drawn").as_posix() for path in tmp_path.rglob("*.jpg")}
    assert len(files) == 8
    assert {"ship/000.jpg", "truck/001.jpg"} <= files
    first = (tmp_path / "drawn" / "ship" / "000.jpg").read_bytes()
    pictures.main([str(tmp_path / "again"), "--each", "2"])
    assert (tmp_path / "again" / "ship" / "000.jpg").read_bytes() == first


def test_a_folder_of_images_is_learned(folder_run):
    assert folder_run.class_names == ("airplane", "automobile", "ship", "truck")
    assert accuracy_of(folder_run) > 0.5  # 0.25 by chance
    assert (folder_run.path / "curves.png").is_file()


def test_fine_tuning_leaves_the_frozen_stages_and_beats_a_start_from_scratch(folder_run, capsys):
    fine_tune.main(["--data", str(folder_run.path / "photographs"), "--epochs", "4"])
    tuned, scratch = (training.load_run(f"runs/fine_tune/{name}") for name in ("tuned", "scratch"))
    assert accuracy_of(tuned) > 0.75
    assert accuracy_of(tuned) > accuracy_of(scratch)
    assert re.search(r"^frozen +C3 +-$", capsys.readouterr().out, re.MULTILINE)

    assert tuned.model.output_shape == (None, 4)
    assert tuned.model.class_names == folder_run.class_names
    known = {w.path: w.numpy() for w in keras_resnet.ResNet20(weights="cifar10").weights}
    changed = {
        path.split("/")[0].split("_")[0]
        for path, value in ((w.path, w.numpy()) for w in tuned.model.weights)
        if "logits" not in path and (value != known[path]).any()
    }
    assert changed == {"stage4"}


class TestExporting:
    def test_the_network_of_the_package_names_what_was_drawn(self, capsys):
        export_and_classify.main([])
        out = capsys.readouterr().out
        named = dict(re.findall(r"^(\w+)\.png (\w+) ", out, re.MULTILINE))
        assert named == {p.__name__: p.__name__ for p in pictures.PICTURES}
        assert "passed" in out.splitlines()
        assert export.verify("runs/export/int8").passed

    def test_a_run_is_compared_on_its_own_test_images(self, folder_run):
        export_and_classify.main(["--run", str(folder_run.path), "--scheme", "float16"])
        bundle = export.Bundle.open("runs/export/float16")
        assert bundle.labels == folder_run.class_names
        assert bundle.manifest["verification"]["accuracy"]["examples"] == 32


@pytest.fixture(scope="module")
def own_run(directory):
    own_architecture.main([])
    return training.load_run("runs/own/run")


def test_a_network_of_ones_own_is_trained_and_exported(own_run):
    assert own_run.model.architecture == own_architecture.OWN
    bundle = export.Bundle.open("runs/own/int8")
    assert bundle.manifest["verification"]["accuracy"]["exported_correct"] > 0.9 * 355


def test_quantization_in_training_and_after_it_keep_the_accuracy(own_run, capsys):
    quantization_aware.main(["--run", str(own_run.path)])
    out = capsys.readouterr().out
    for name in ("after", "during"):
        bundle = export.Bundle.open(f"runs/qat/{name}")
        accuracy = bundle.manifest["verification"]["accuracy"]
        assert bundle.scheme == "int8"
        assert accuracy["exported_correct"] > 0.9 * accuracy["examples"]
        assert f"runs/qat/{name}: {accuracy['exported_correct']} of 355 right" in out
    assert bundle.manifest["optimization"]["method"] == "qat"


class TestDeeper:
    def test_a_deeper_network_begins_as_the_one_of_the_package(self, directory, capsys):
        deeper.main(["cifar10/resnet20", "resnet32", "--out", "resnet32.keras"])
        assert "466,426 weights; 271,098 of them known" in capsys.readouterr().out
        shallow, deep = (
            keras_resnet.ResNet20(weights="cifar10"),
            keras_resnet.ResNet32(weights="resnet32.keras"),
        )
        images = np.random.default_rng(1).normal(size=(4, 32, 32, 3))
        np.testing.assert_array_equal(deep(images), shallow(images))
        assert deep.class_names == shallow.class_names
        assert deep.preprocessing == shallow.preprocessing
        gradients = deep_gradients(deep, images)
        # Behind a scale of zero nothing is learned in the first step, but the scale itself is.
        assert gradients["stage2_block5_norm2/gamma"] > 0
        assert (
            gradients["stage2_block5_conv1/kernel"] == 0 < gradients["stage2_block3_conv1/kernel"]
        )

    @pytest.mark.parametrize(
        ("shallow", "deep", "message"),
        [
            ("resnet20", "plain56", "plain56 differs from resnet20 in more than"),
            ("resnet20", "resnet110_preact", "in more than the number of blocks"),
            ("resnet32", "resnet20", "resnet20 has no place for stage2_block4_conv1 of resnet32"),
            ("plain20", "plain32", "plain32 cannot begin as plain20: they differ by"),
        ],
    )
    def test_what_cannot_begin_as_another_is_refused(self, shallow, deep, message):
        shape = (32, 32, 3)
        with pytest.raises(ValueError, match=re.escape(message)):
            deeper.deepened(keras_resnet.create_model(shallow, input_shape=shape), deep)

    def test_a_file_that_is_there_stays(self, directory, tmp_path, capsys):
        file = tmp_path / "mine.keras"
        file.write_text("mine")
        with pytest.raises(SystemExit):
            deeper.main(["cifar10/resnet20", "resnet32", "--out", str(file)])
        assert "exists already" in capsys.readouterr().err
        assert file.read_text() == "mine"


@pytest.fixture(scope="module")
def lesson(folder_run):
    """Of a teacher that takes each class for the next one, and of a start that knows better."""
    teacher = training.load_run(folder_run.path).model
    teacher.set_weights(
        [np.roll(w, 1, -1) if w.shape[-1] == 4 else w for w in teacher.get_weights()]
    )
    teacher.save("teacher.keras")
    settings = "--recipe small --set epochs=6 warmup_epochs=0 augment= --out runs/distilled"
    return [
        *("resnet8", "--weights", str(folder_run.path / "model.keras")),
        *("--data", f"folder:{folder_run.path / 'photographs'}"),
        *settings.split(),
        *("--teachers", "teacher.keras"),
    ]


class TestDistill:
    def test_what_the_teachers_say_is_learned_and_not_the_labels(self, lesson, folder_run, capsys):
        distill.main(lesson)
        told = re.search(r"together: ([\d.]+)% of 32 test images", capsys.readouterr().out)
        assert float(told[1]) < 25
        with np.load("runs/distilled/shares.npz", allow_pickle=False) as file:
            shares, labels = file["shares"], file["labels"]
        assert (shares.argmax(axis=1) == (labels + 1) % 4).mean() > 0.5
        run = training.load_run("runs/distilled")
        assert run.history[-1]["accuracy"] > 0.5  # of what the teacher says
        assert accuracy_of(run) < 0.25 < 0.5 < accuracy_of(folder_run)

    def test_the_teachers_are_asked_once(self, lesson, monkeypatch):
        asked, probabilities = [], distill.probabilities
        monkeypatch.setattr(
            distill, "probabilities", lambda *a: asked.append(a[-1]) or probabilities(*a)
        )
        distill.main(lesson)
        assert asked == ["Measuring the teachers"]

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (["--teachers", "teacher.keras", "teacher.keras"], "is what teacher.keras said of 128"),
            (["--teachers", "cifar10/resnet20"], "cifar10/resnet20 cannot teach"),
            (["--data", "nowhere"], "Argument `data` must be"),
        ],
    )
    def test_what_does_not_fit_is_refused_with_a_sentence(self, lesson, changed, message, capsys):
        with pytest.raises(SystemExit):
            distill.main([*lesson, *changed])
        assert message in capsys.readouterr().err


def deep_gradients(model, images):
    """The largest gradient of each weight, of a loss that every output takes part in."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=True)[:, 0])
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    pairs = zip(model.trainable_variables, gradients, strict=True)
    return {variable.path: float(abs(g).numpy().max()) for variable, g in pairs}


def test_a_detector_has_its_levels_at_strides_8_16_and_32(capsys):
    model = detector_features.main([])
    size, anchors = detector_features.SIZE, detector_features.ANCHORS
    assert {name: output.shape for name, output in model.output.items()} == {
        f"P{level}_{kind}": (None, size // stride, size // stride, anchors * values)
        for level, stride in ((3, 8), (4, 16), (5, 32))
        for kind, values in (("logits", detector_features.CLASSES), ("boxes", 4))
    }
    assert "P4_boxes  stride 16: 16 x 16 x 36" in capsys.readouterr().out
    trains = {layer.name for layer in model.layers if layer.trainable_weights}
    assert {"lateral5", "P3", "tower", "logits", "boxes", "stage3_block1_conv1"} <= trains
    assert not [name for name in trains if name.startswith(("stem", "stage2")) or "norm" in name]


def test_two_workers_train_as_one(directory):
    assert several_workers.main([]) == 0
    run = training.load_run("runs/several_workers")
    assert run.info["replicas"] == 2
    assert accuracy_of(run) > 0.5
    log = (run.path / "workers" / "worker-1.log").read_text()
    assert f"{accuracy_of(run):.1%} of 355 test images" in log
    config = json.loads((run.path / "run.json").read_text())
    assert config["architecture"]["name"] == "own"
