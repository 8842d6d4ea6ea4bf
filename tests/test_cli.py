"""The command keras-resnet, as a user and a program meet it."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from processes import run_python

import keras_resnet
from keras_resnet import __version__, cli
from keras_resnet.export.presets import PRESETS

COMMANDS = (
    "train",
    "evaluate",
    "preview",
    "compare",
    "export",
    "optimize",
    "inspect",
    "verify",
    "benchmark",
    "classify",
    "serve",
    "list",
    "info",
    "completion",
)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    try:
        status = cli.main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse's way out
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes that a network tells apart at once: mostly red and mostly blue."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name, channel in {"red": 0, "blue": 2}.items():
        (root / name).mkdir()
        for i in range(60):
            pixels = rng.integers(0, 120, (40, 36, 3), np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run_dir(photographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "colors"
    status = cli.main(
        [
            "train", "--model", "resnet8", "--data", f"folder:{photographs}", "--out", str(path),
            "--set", "epochs=4", "--set", "augment=flip", "--set", "warmup_epochs=1",
        ]
    )  # fmt: skip
    assert status == 0
    return path


@pytest.fixture(scope="module")
def bundle(run_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "colors"
    assert cli.main(["export", str(run_dir), "--out", str(path)]) == 0
    return path


class TestHelp:
    def test_it_answers_at_once_and_lists_the_commands(self):
        started = time.perf_counter()
        done = run_python("-m", "keras_resnet", "--help")
        assert time.perf_counter() - started < 5  # seconds; importing TensorFlow alone takes longer
        for command in COMMANDS:
            assert re.search(rf"^    {command}\s", done.stdout, re.MULTILINE)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_teaches_by_an_example(self, capsys, command):
        status, out, _ = run(capsys, command, "--help")
        assert status == 0
        assert f"keras-resnet {command} " in out.split("Example:")[1]

    def test_a_shell_completes_commands_and_options(self, capsys, tmp_path):
        status, script, _ = run(capsys, "completion", "bash")
        assert status == 0
        (tmp_path / "completion").write_text(script)
        asked = (
            "source ./completion; COMP_WORDS=(keras-resnet {}); "
            "COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_keras_resnet; echo ${{COMPREPLY[@]}}"
        )
        for words, answer in (("ver", "verify"), ("export --sch", "--scheme")):
            answered = subprocess.run(
                ["bash", "-c", asked.format(words)],
                cwd=tmp_path, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert answered.stdout.split() == [answer]

    def test_info_without_a_name_says_what_is_missing(self, capsys, monkeypatch):
        found = importlib.metadata.version

        def version(name):
            if name == "tf-keras":
                raise importlib.metadata.PackageNotFoundError(name)
            return found(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        status, out, _ = run(capsys, "info")
        assert status == 0
        assert f"keras_resnet {__version__}, Python 3." in out
        assert "optimize: needs tf-keras" in out
        told = json.loads(run(capsys, "info", "--json")[1])
        assert told["missing"]["optimize"] == ["tf-keras"]
        assert told["devices"][0].startswith("CPU:0")
        assert told["versions"]["keras"] == keras.__version__

    def test_version(self, capsys):
        assert run(capsys, "--version")[:2] == (0, f"keras-resnet {__version__}\n")


class TestUsage:
    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("fly",),
            ("train", "--model", "resnet20"),
            ("info", "resnet20", "--input-size", "0"),
            ("info", "resnet20", "--input-size", "big"),
            ("classify", "somewhere"),
        ],
    )
    def test_wrong_usage_is_status_2(self, capsys, arguments):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (2, "")
        assert "usage:" in err


class TestList:
    def test_a_pattern_chooses(self, capsys):
        status, out, _ = run(capsys, "list", "plain*")
        names = [line.split()[0] for line in out.splitlines()[1:]]
        assert status == 0
        assert names == ["plain18", "plain34", *(f"plain{d}" for d in (20, 32, 44, 56, 110))]

    def test_json_can_be_read_by_a_program(self, capsys):
        _, out, _ = run(capsys, "list", "resnet50_v*", "--json")
        rows = json.loads(out)
        assert [row["builder"] for row in rows] == ["ResNet50V1_5", "ResNet50V2"]
        row = rows[0]
        assert row["stride_on"] == "3x3"
        assert row["parameters"] == 25_557_032
        assert round(row["gmacs"], 3) == 4.089
        assert row["input_size"] == 224
        assert row["source"].startswith("Goyal et al. 2017")
        assert "timm/resnet50.a1_in1k" in row["weights"]
        assert rows[1]["weights"] == ["imagenet/resnet50_v2"]

    def test_a_person_reads_sizes_and_the_number_of_public_weights(self, capsys):
        _, out, _ = run(capsys, "list", "resnet50_v1_5")
        cells = re.split(r"\s{2,}", out.splitlines()[1])
        assert cells[:7] == [
            "resnet50_v1_5",
            "ResNet50V1_5",
            "25,557,032",
            "4.089",
            "224",
            "1000",
            "19",
        ]

    def test_nothing_found_is_a_failure(self, capsys):
        status, _, err = run(capsys, "list", "vgg*")
        assert status == 1
        assert "vgg" in err


class TestInfo:
    def test_the_totals_are_those_of_the_paper(self, capsys):
        status, out, _ = run(capsys, "info", "resnet20")
        assert status == 0
        assert out.splitlines()[-1].split() == ["total", "269,722", "1,376", "40,551,040"]
        assert out.splitlines()[1] == "weights: cifar10/resnet20"
        stages = [line.split()[0] for line in out.splitlines()[3:]]
        assert stages == ["stem", "C2", "C3", "C4", "head", "total"]

    def test_it_names_the_public_weights(self, capsys):
        _, out, _ = run(capsys, "info", "resnet18")
        assert "weights: timm/resnet18.a1_in1k, " in out
        _, out, _ = run(capsys, "info", "resnet18", "--json")
        assert "timm/resnet18.tv_in1k" in json.loads(out)["weights"]

    def test_json_and_another_size(self, capsys):
        _, out, _ = run(capsys, "info", "resnet18", "--input-size", "64", "--json")
        info = json.loads(out)
        assert info["input_size"] == 64
        assert info["stages"][0]["output_shape"] == [16, 16, 64]
        assert info["total"]["parameters"] == 11_689_512

    def test_an_unknown_name_suggests_the_nearest(self, capsys):
        status, _, err = run(capsys, "info", "resnet55")
        assert status == 1
        assert "resnet56" in err
        assert len(err.splitlines()) == 1


class TestTheWholePath:
    def test_training_writes_a_run(self, run_dir):
        names = {path.name for path in run_dir.iterdir()}
        files = {"model.keras", "history.csv", "run.json", "curves.png"}
        assert names == files | {"checkpoints", "tensorboard"}
        info = json.loads((run_dir / "run.json").read_text())
        assert info["class_names"] == ["blue", "red"]
        assert info["recipe"]["epochs"] == 4

    def test_evaluate_uses_the_data_of_the_run(self, capsys, run_dir):
        status, out, _ = run(capsys, "evaluate", run_dir, "--json")
        result = json.loads(out)
        assert status == 0
        assert result["examples"] == 24
        assert result["accuracy"] == result["correct"] / 24 >= 0.9

    def test_the_test_images_are_those_that_training_did_not_see(
        self, capsys, photographs, tmp_path, monkeypatch
    ):
        """An unsplit folder, split by a seed, given relative to where the training ran."""
        from keras_resnet import data, training

        monkeypatch.chdir(photographs.parent)
        status, _, _ = run(
            capsys, "train", "--model", "resnet8", "--data", f"folder:{photographs.name}",
            "--out", tmp_path / "run", "--seed", "3", "--set", "epochs=1",
            "--set", "warmup_epochs=0",
        )  # fmt: skip
        assert status == 0
        monkeypatch.chdir(tmp_path)
        trained_with = data.load(f"folder:{photographs}", seed=3)
        loaded = training.load_run(tmp_path / "run").load_data()
        for ours, theirs in ((loaded.train, trained_with.train), (loaded.test, trained_with.test)):
            images = [
                s.take(200, (32, 32, 3), keras_resnet.Preprocessing()) for s in (ours, theirs)
            ]
            np.testing.assert_array_equal(images[0][0], images[1][0])
        status, out, _ = run(capsys, "evaluate", tmp_path / "run", "--json")
        assert status == 0
        last = training.load_run(tmp_path / "run").history[-1]
        assert json.loads(out)["accuracy"] == last["val_accuracy"]
        arguments = ["--scheme", "float32", "--evaluation", "none", "--out", tmp_path / "b"]
        assert run(capsys, "export", tmp_path / "run", *arguments)[0] == 0

    def test_evaluate_a_file_needs_data(self, capsys, run_dir, photographs):
        status, _, err = run(capsys, "evaluate", run_dir / "model.keras")
        assert status == 1
        assert "--data" in err
        data = f"folder:{photographs}"
        status, out, _ = run(capsys, "evaluate", run_dir / "model.keras", "--data", data)
        assert status == 0
        assert "of 24 test images" in out

    def test_a_network_by_its_name_takes_weights_from_a_file(self, capsys, photographs, tmp_path):
        model = keras_resnet.create_model("resnet8", classes=10)
        model.save_weights(tmp_path / "resnet8.weights.h5")
        (tmp_path / "images").mkdir()
        for number in range(10):
            link = tmp_path / "images" / str(number)
            link.symlink_to(photographs / ("red" if number % 2 else "blue"))
        data = ["--data", f"folder:{tmp_path / 'images'}"]
        by_name = ["--model", "resnet8", "--weights", tmp_path / "resnet8.weights.h5"]
        model.save(tmp_path / "model.keras")
        results = [
            run(capsys, "evaluate", *model, *data, "--json")
            for model in ([tmp_path / "model.keras"], by_name)
        ]
        assert results[0][0] == results[1][0] == 0
        assert json.loads(results[0][1]) == json.loads(results[1][1])

        arguments = ["--scheme", "float32", "--evaluation", "none", "--out", tmp_path / "b"]
        assert run(capsys, "export", "resnet8", *by_name[2:], *arguments)[0] == 0
        for wrong in ([], ["a run", "--model", "resnet8"]):
            status, _, err = run(capsys, "evaluate", *wrong)
            assert status == 1
            assert "either RUN or --model" in err

    def test_export_says_what_was_measured(self, capsys, run_dir, tmp_path):
        out_dir = tmp_path / "b"
        status, out, _ = run(capsys, "export", run_dir, "--scheme", "float16", "--out", out_dir)
        assert status == 0
        assert "evaluation images 24" in out
        assert "passed" in out
        assert "bytes" in out

    def test_a_target_chooses_and_refuses(self, capsys, run_dir, tmp_path):
        out = tmp_path / "micro"
        status, told, _ = run(
            capsys, "export", run_dir, "--target", "tflm", "--out", out, "--evaluation", "none"
        )
        assert status == 0
        assert "tflm: io int8: TFLite Micro's own type" in told
        assert {"model.h", "model.cc"} < {path.name for path in out.iterdir()}
        refused = ("--target", "web", "--scheme", "int8", "--io", "int8", "--evaluation", "none")
        status, _, err = run(capsys, "export", run_dir, "--out", tmp_path / "web", *refused)
        assert status == 1
        assert "Target 'web' does not take the file" in err
        assert not (tmp_path / "web").exists()
        with pytest.raises(SystemExit):
            cli.make_parser().parse_args(["export", "run", "--out", "b", "--target", "mars"])
        named = re.search(r"--target \{(.*?)\}", run(capsys, "export", "--help")[1])
        assert named[1].split(",") == list(PRESETS)

    def test_a_rejected_export_is_status_1_and_leaves_a_page(self, capsys, photographs, tmp_path):
        """Group normalization has no integer form."""
        network = keras_resnet.create_model("resnet8", norm="group", classes=2)
        network.save(tmp_path / "network.keras")
        calibration = ["--calibration", f"folder:{photographs}"]
        status, out, err = run(
            capsys, "export", tmp_path / "network.keras", "--out", tmp_path / "b", *calibration
        )
        assert status == 1
        assert "REJECTED: the file claims the scheme int8 and is really mixed" in out
        assert f"no bundle was written, see {tmp_path / 'b.rejected.html'}" in err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["b.rejected.html", "network.keras"]

    def test_verify(self, capsys, bundle):
        status, out, _ = run(capsys, "verify", bundle)
        assert status == 0
        assert out.endswith("passed\n")
        status, out, _ = run(capsys, "verify", bundle, "--json")
        assert json.loads(out)["passed"] is True

    def test_classify_names_the_colors(self, capsys, bundle, photographs):
        paths = [photographs / "red" / "0.png", photographs / "blue" / "0.png"]
        status, out, _ = run(capsys, "classify", bundle, *paths, "--json")
        assert status == 0
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["image"] for line in lines] == [str(p) for p in paths]
        assert [line["classes"][0]["label"] for line in lines] == ["red", "blue"]
        status, out, _ = run(capsys, "classify", bundle, paths[0], "--top", "1")
        assert out.startswith(f"{paths[0]}: red ")
        assert out.count("%") == 1

    def test_a_directory_stands_for_the_images_in_it(self, capsys, bundle, photographs, tmp_path):
        (tmp_path / "notes.txt").write_text("no image")
        assert run(capsys, "classify", bundle, tmp_path)[0] == 1
        status, out, _ = run(capsys, "classify", bundle, photographs, tmp_path / "a.png", "--json")
        assert status == 1  # the last one is not there; the others are named
        named = [json.loads(line) for line in out.splitlines()]
        assert [line["image"] for line in named] == sorted(map(str, photographs.rglob("*.png")))
        right = [line["classes"][0]["label"] == Path(line["image"]).parent.name for line in named]
        assert all(right)

    def test_a_bad_image_does_not_hide_the_good_ones(self, capsys, bundle, photographs, tmp_path):
        bad = tmp_path / "notes.png"
        bad.write_text("no image")
        good = photographs / "red" / "1.png"
        status, out, err = run(capsys, "classify", bundle, bad, good)
        assert status == 1
        assert out.startswith(f"{good}: ")
        assert "notes.png" in err


class TestMistakes:
    """One line, no traceback, and nothing overwritten."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("train", "--model", "resnet9", "--data", "digits"), "resnet"),
            (("train", "--model", "resnet8", "--data", "folder:nowhere"), "nowhere"),
            (("train", "--model", "resnet8", "--data", "numbers"), "folder:PATH"),
            (("train", "--model", "resnet8", "--data", "digits", "--recipe", "x"), "paper-cifar"),
            (("train", "--model", "resnet8", "--data", "digits", "--set", "epoch=3"), "'epochs'"),
            (("train", "--model", "resnet8", "--data", "digits", "--set", "epochs"), "field=value"),
            (("train", "--model", "resnet8", "--data", "digits", "--set", "epochs=0"), "epochs"),
            (("train", "--model", "resnet8", "--data", "digits", "--strategy", "x"), "mirrored"),
            (("train", "--model", "resnet8", "--data", "digits", "--input-size", "8"), "32"),
            (("export", "nowhere"), "nowhere"),
            (("export", "nowhere", "--scheme", "int4"), "dynamic_int8"),
        ],
    )
    def test_a_mistake_is_named(self, capsys, tmp_path, arguments, words):
        status, out, err = run(capsys, *arguments, "--out", tmp_path / "out", "--json")
        assert (status, out) == (1, "")
        assert words in err
        assert err.startswith("keras-resnet: error: ")
        assert len(err.splitlines()) == 1
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("command", ["evaluate", "verify"])
    def test_a_missing_path_is_named(self, capsys, tmp_path, command):
        status, _, err = run(capsys, command, tmp_path / "nowhere")
        assert status == 1
        assert "nowhere" in err

    def test_a_run_is_not_overwritten(self, capsys, run_dir, photographs):
        before = (run_dir / "model.keras").read_bytes()
        status, _, err = run(
            capsys, "train", "--model", "resnet8", "--data", f"folder:{photographs}",
            "--out", run_dir,
        )  # fmt: skip
        assert status == 1
        assert "--force" in err
        assert (run_dir / "model.keras").read_bytes() == before

    def test_a_bundle_is_not_overwritten(self, capsys, run_dir, bundle):
        before = (bundle / "model.tflite").read_bytes()
        status, _, err = run(capsys, "export", run_dir, "--out", bundle)
        assert status == 1
        assert "--force" in err
        assert (bundle / "model.tflite").read_bytes() == before

    def test_debug_shows_the_traceback_and_writes_a_report(self, capsys, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="resnet9"):
            run(capsys, "info", "resnet9", "--debug")
        (report,) = tmp_path.iterdir()
        assert str(report) in capsys.readouterr().err
        text = report.read_text()
        assert text.startswith("keras-resnet info resnet9 --debug\n")
        for part in (f"keras_resnet {__version__}", "  tensorflow 2.", "in get_architecture"):
            assert part in text

    def test_ctrl_c_is_status_130(self, capsys, monkeypatch):
        def interrupted(_pattern):
            raise KeyboardInterrupt

        monkeypatch.setattr("keras_resnet.architecture.list_models", interrupted)
        assert run(capsys, "list")[0] == 130

    def test_bad_images_are_listed_when_skipped(self, capsys, photographs, tmp_path):
        import shutil

        root = tmp_path / "photographs"
        shutil.copytree(photographs, root)
        (root / "red" / "broken.png").write_text("no image")
        arguments = [
            "train", "--model", "resnet8", "--data", f"folder:{root}", "--out", tmp_path / "run",
            "--set", "epochs=1", "--set", "warmup_epochs=0",
        ]  # fmt: skip
        status, _, err = run(capsys, *arguments)
        assert status == 1
        assert "broken.png" in err
        assert "--skip-bad-images" in err
        status, _, err = run(capsys, *arguments, "--skip-bad-images")
        assert status == 0
        assert "left out 1 files" in err
        assert "broken.png" in err


class TestLookingAtTrainings:
    def test_preview_draws_what_the_network_will_see(self, capsys, photographs, tmp_path):
        picture = tmp_path / "preview.png"
        arguments = ("preview", "--data", f"folder:{photographs}", "--out", picture)
        status, out, _ = run(capsys, *arguments, "--set", "mixup=0.5")
        assert (status, out) == (0, f"drawn: {picture}\n")
        with Image.open(picture) as image:
            assert min(image.size) > 200
        status, _, err = run(capsys, *arguments)
        assert status == 1
        assert "exists already" in err
        status, out, _ = run(capsys, *arguments, "--force", "--json")
        assert json.loads(out) == {"picture": str(picture)}

    def test_compare_prints_a_table_and_draws_the_curves(self, capsys, run_dir, tmp_path):
        other = shutil.copytree(run_dir, tmp_path / "other")
        picture = tmp_path / "compare.png"
        status, out, _ = run(capsys, "compare", run_dir, other, "--out", picture)
        assert status == 0
        assert "colors" in out
        assert "other" in out
        with Image.open(picture) as image:
            image.verify()
        status, out, _ = run(capsys, "compare", run_dir, other, "--json")
        assert [row["run"] for row in json.loads(out)["runs"]] == ["colors", "other"]

    def test_evaluate_tells_of_every_class(self, capsys, run_dir):
        status, out, _ = run(capsys, "evaluate", run_dir, "--per-class")
        assert status == 0
        table = out.splitlines()[1:]
        assert table[0].split() == ["class", "precision", "recall", "images"]
        assert [line.split()[0] for line in table[1:3]] == ["red", "blue"] or [
            line.split()[0] for line in table[1:3]
        ] == ["blue", "red"]
        _, out, _ = run(capsys, "evaluate", run_dir, "--json", "--per-class")
        values = json.loads(out)
        assert np.sum(values["confusion"]) == values["examples"] == 24
        _, out, _ = run(capsys, "evaluate", run_dir, "--json")
        assert json.loads(out).get("confusion") is None


class TestHowToTrain:
    def test_all_that_train_is_told_gets_into_the_run(self, capsys, photographs, tmp_path):
        path = tmp_path / "run"
        status, out, err = run(
            capsys, "train", "--model", "resnet8", "--data", f"folder:{photographs}",
            "--out", path, "--set", "epochs=1", "--set", "warmup_epochs=0", "--seed", "3",
            "--precision", "mixed_bfloat16", "--class-weights", "red=2", "--precise-bn",
            "--sync-bn", "--accumulate", "2", "--checkpoint-every", "2", "--input-size", "40",
            "--cache", "none", "--json",
        )  # fmt: skip
        assert status == 0, err
        assert json.loads(out)["run"] == str(path)
        info = json.loads((path / "run.json").read_text())
        told = {
            "seed": 3,
            "precision": "mixed_bfloat16",
            "class_weights": {"red": 2.0},
            "precise_bn": True,
            "sync_bn": True,
            "accumulate": 2,
            "input_shape": [40, 40, 3],
            "status": "finished",
        }
        assert {name: info[name] for name in told} == told
        assert (path / "checkpoints" / "step-2.json").is_file()
        # And it needs to be told none of it again, here to train the second half anew.
        for name in ("model.keras", "history.csv", "curves.png"):
            (path / name).unlink()
        for file in (path / "checkpoints").glob("step-3*"):
            file.unlink()
        (path / "run.json").write_text(json.dumps(info | {"status": "running"}))
        status, out, err = run(capsys, "train", "--resume", "--out", path)
        assert status == 0, err
        assert "going on after step 2 of 3" in out
        again = json.loads((path / "run.json").read_text())
        assert {name: again[name] for name in told} == told
        status, out, err = run(capsys, "train", "--resume", "--out", path)
        assert status == 0, err
        assert "the run was finished before" in out

    @pytest.mark.parametrize("same_classes", [True, False])
    def test_training_starts_from_weights_with_a_new_classifier_for_new_classes(
        self, same_classes, capsys, run_dir, photographs, tmp_path
    ):
        path, weights = tmp_path / "run", run_dir / "model.keras"
        source = f"folder:{photographs}" if same_classes else "digits"
        arguments = ("train", "--model", "resnet8", "--data", source, "--out", path)
        few = ("--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "learning_rate=1e-9")
        status, _, err = run(capsys, *arguments, *few, "--weights", weights)
        assert status == 0, err
        first, second = (keras_resnet.load_model(p / "model.keras") for p in (run_dir, path))
        for name in ("stage4_block1_conv2", *(("logits",) if same_classes else ())):
            before, after = (model.get_layer(name).kernel for model in (first, second))
            np.testing.assert_allclose(after, before, atol=1e-6)
        assert second.output_shape[-1] == (2 if same_classes else 10)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--data", "digits"), "--model NAME"),
            (("--model", "resnet8"), "--data DATA"),
            (("--model", "resnet8", "--data", "digits", "--checkpoint-every", "x"), "'90s'"),
            (("--model", "resnet8", "--data", "digits", "--class-weights", "cat"), "cat=2,dog=0.5"),
            (("--model", "resnet8", "--data", "digits", "--class-weights", "cat=2"), "'cat'"),
            (("--model", "resnet8", "--data", "digits", "--accumulate", "5"), "accumulate=5"),
            (("--model", "resnet8", "--data", "digits", "--cache", "attic"), "attic"),
        ],
    )
    def test_what_cannot_be_trained_says_what_would_work(
        self, capsys, tmp_path, arguments, message
    ):
        status, _, err = run(capsys, "train", *arguments, "--out", tmp_path / "run")
        assert status == 1
        assert message in err
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        "arguments", [("--profile", "5"), ("--profile", "9:5"), ("--precision", "int8"),
                      ("--workers", "two"), ("--max-restarts", "-1")],
    )  # fmt: skip
    def test_a_wrong_option_is_status_2(self, capsys, tmp_path, arguments):
        status, _, err = run(capsys, "train", "--out", tmp_path / "run", *arguments)
        assert status == 2
        assert arguments[0] in err

    def test_a_group_trains_by_the_strategy_for_groups(self, capsys, tmp_path):
        arguments = (
            "train",
            "--workers",
            "2",
            "--strategy",
            "mirrored:2",
            "--out",
            tmp_path / "run",
        )
        status, _, err = run(capsys, *arguments)
        assert status == 1
        assert "auto or multiworker. Received: --strategy mirrored:2" in err
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            (["--force"], ""),
            (["--workers", "2", "--workers", "0"], " --workers 2"),
            (["--workers=2", "--strategy", "multiworker", "--workers", "0"], " --workers 2"),
            (["--checkpoint-every", "9", "--cache=none"], " --checkpoint-every 9 --cache none"),
        ],
    )
    def test_how_to_go_on_repeats_what_the_run_does_not_remember(self, given, told):
        arguments = ["train", "--model", "resnet8", "--out", "my runs", *given]
        options = cli.make_parser().parse_args(arguments)
        options.arguments = arguments
        assert (
            cli.training.how_to_go_on(options)
            == f"keras-resnet train --resume --out 'my runs'{told}"
        )

    def test_a_profile_is_for_the_steps_that_were_named(self, capsys, photographs, tmp_path):
        path = tmp_path / "run"
        status, _, err = run(
            capsys, "train", "--model", "resnet8", "--data", f"folder:{photographs}",
            "--out", path, "--set", "epochs=1", "--set", "warmup_epochs=0", "--profile", "1:2",
        )  # fmt: skip
        assert status == 0, err
        (profile,) = (path / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
        assert profile.stat().st_size > 0
