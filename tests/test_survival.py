"""What becomes of a training that is killed, interrupted, or runs out of something."""

import csv
import errno
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import survival_process
from processes import run_python

from keras_resnet import training

HERE = Path(__file__).parent
EVERY = 7  # steps between two checkpoints; an epoch has 22


@pytest.fixture(scope="module")
def processes():
    """Processes that have imported TensorFlow before they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "keras_resnet.training", "keras_resnet.models"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield context


def start(processes, run_dir):
    process = processes.Process(
        target=survival_process.train_to_be_killed, args=(str(run_dir), EVERY)
    )
    process.start()
    return process


def steps_taken(run_dir):
    path = Path(f"{run_dir}.steps")
    return path.stat().st_size if path.is_file() else 0


def weights_of(run_dir):
    return training.load_run(run_dir).model.get_weights()


def history_of(run_dir):
    with (run_dir / "history.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name != "images_per_second"}
            for row in csv.DictReader(file)
        ]


def assert_same_training(first, second):
    """The same weights, bit by bit, and the same figures but for the time they took."""
    for one, other in zip(weights_of(first), weights_of(second), strict=True):
        np.testing.assert_array_equal(one, other)
    assert history_of(first) == history_of(second)


def is_writing_a_checkpoint(run_dir):
    """Whether there are files of a checkpoint that is not finished."""
    names = {path.name for path in (run_dir / "checkpoints").glob("*step-*")}
    steps = {name.split(".")[0] for name in names if not name.startswith(".")}
    return any(f"{step}.json" not in names for step in steps) or any(
        name.startswith(".") for name in names
    )


def kill(process, run_dir, moment):
    """Kills after so many more steps, or, with None, while a checkpoint is being written."""
    before = steps_taken(run_dir)
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if moment is None:
            hit = steps_taken(run_dir) > before and is_writing_a_checkpoint(run_dir)
        else:
            hit = steps_taken(run_dir) >= before + moment
        if hit:
            break
        if moment is not None:
            time.sleep(0.001)
    was_alive = process.is_alive()
    process.kill()
    process.join()
    assert was_alive, "the training was over before it could be killed"


def test_a_training_killed_ten_times_ends_with_the_same_weights_bit_by_bit(processes, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    undisturbed = start(processes, whole)
    rng = random.Random(0)
    moments = [rng.randint(1, 2 * EVERY) for _ in range(6)] + [None] * 4
    rng.shuffle(moments)
    torn_checkpoints = 0
    for moment in moments:
        kill(start(processes, torn), torn, moment)
        torn_checkpoints += is_writing_a_checkpoint(torn)
    last = start(processes, torn)
    last.join()
    undisturbed.join()
    assert (last.exitcode, undisturbed.exitcode) == (0, 0)
    assert_same_training(torn, whole)
    assert len(history_of(whole)) == 6
    # No more steps were repeated than lie between two checkpoints.
    assert steps_taken(whole) == 6 * 22
    assert steps_taken(torn) <= 6 * 22 + len(moments) * EVERY
    assert torn_checkpoints >= 1


# What is found damaged


@pytest.fixture(scope="module")
def interrupted(processes, tmp_path_factory):
    """A run that was killed, with three checkpoints."""
    run_dir = tmp_path_factory.mktemp("interrupted") / "run"
    kill(start(processes, run_dir), run_dir, 4 * EVERY + 2)
    return run_dir


@pytest.fixture
def run_dir(interrupted, tmp_path):
    """A copy of it, to do things to."""
    return shutil.copytree(interrupted, tmp_path / "run")


def newest(run_dir, suffix=".data-00000-of-00001"):
    return run_dir / "checkpoints" / f"step-{4 * EVERY}{suffix}"


def resume(run_dir, **options):
    return survival_process.train(run_dir, EVERY, **options)


def test_the_newest_three_checkpoints_are_kept(run_dir):
    names = sorted(path.name for path in (run_dir / "checkpoints").glob("*.json"))
    # One after the first epoch, of 22 steps, is written besides.
    assert names == ["step-21.json", "step-22.json", "step-28.json"]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("suffix", "damage", "complaint"),
    [
        (".data-00000-of-00001", cut_short, "damaged"),
        (".data-00000-of-00001", flip_a_bit, "damaged"),
        (".index", flip_a_bit, "damaged"),
        (".index", Path.unlink, "missing"),
        (".json", cut_short, "damaged"),
    ],
    ids=["cut", "bit", "index", "missing", "manifest"],
)
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(
    run_dir, suffix, damage, complaint, capsys
):
    damage(newest(run_dir, suffix))
    resume(run_dir, verbose=True, stop_after=1)
    said = capsys.readouterr().out
    assert re.search(rf"left out a damaged checkpoint: .*step-{4 * EVERY}.* {complaint}", said)
    assert "going on after step 22 of 132" in said


def test_when_all_checkpoints_are_damaged_nothing_is_trained(run_dir):
    for path in (run_dir / "checkpoints").glob("*.index"):
        flip_a_bit(path)
    before = steps_taken(run_dir)
    with pytest.raises(
        training.CheckpointError, match=r"None of the checkpoints .*step-28.*step-22.*step-21"
    ):
        resume(run_dir)
    assert steps_taken(run_dir) == before


def test_a_checkpoint_that_was_cut_off_is_none(run_dir, capsys):
    newest(run_dir, ".json").unlink()
    flip_a_bit(newest(run_dir))
    resume(run_dir, verbose=True, stop_after=EVERY + 1)
    said = capsys.readouterr().out
    assert "damaged" not in said
    assert "going on after step 22 of 132" in said
    resume(run_dir, verbose=True, stop_after=1)  # what stood in its place is a whole one now
    assert "going on after step 28 of 132" in capsys.readouterr().out


# What does not belong to the run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["learning_rate=0.5"], r"another recipe field learning_rate.*0\.5.*began with 0\.05"),
        (["batch_size=32"], "another recipe field batch_size"),
    ],
)
def test_a_run_does_not_go_on_with_another_recipe(run_dir, changes, message):
    with pytest.raises(ValueError, match=message):
        resume(run_dir, changes=changes)


def test_a_run_does_not_go_on_with_another_seed_or_network(run_dir):
    with pytest.raises(ValueError, match="another seed"):
        resume(run_dir, seed=1)
    with pytest.raises(ValueError, match="another architecture"):
        resume(run_dir, widths=(8, 8, 16))


def test_a_finished_run_stays_as_it_is(tmp_path):
    tiny = tmp_path / "run"
    first = resume(tiny, changes=["epochs=1", "warmup_epochs=0"])
    before = {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    again = resume(tiny, changes=["epochs=1", "warmup_epochs=0"])
    assert {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()} == before
    assert again.evaluation is None
    for a, b in zip(again.model.get_weights(), first.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_without_checkpoints_is_not_resumed_over(run_dir):
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "model.keras").write_text("hours of work")
    with pytest.raises(FileExistsError, match="no checkpoint to go on from"):
        resume(run_dir)
    assert (run_dir / "model.keras").read_text() == "hours of work"


def test_a_finished_run_is_not_taken_for_one_with_another_recipe(tmp_path):
    few = ["epochs=1", "warmup_epochs=0"]
    resume(tmp_path / "run", changes=few)
    with pytest.raises(ValueError, match="another recipe field epochs"):
        resume(tmp_path / "run", changes=["epochs=2", "warmup_epochs=0"])


def test_what_is_overwritten_by_force_is_not_gone_on_with(tmp_path):
    """The old checkpoints would look like those of the new training, of the same settings."""
    run = tmp_path / "run"
    few = ["epochs=3", "warmup_epochs=0"]
    resume(run, changes=few)
    assert max(int(p.stem.split("-")[1]) for p in (run / "checkpoints").glob("*.json")) == 66
    result = resume(run, changes=few, resume=False, force=True, stop_after=25)
    assert result is None
    steps = [int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("*.json")]
    assert max(steps) == 22
    assert len(list((run / "tensorboard").iterdir())) == 1


class Fail(keras.callbacks.Callback):
    """As a vanished file or a lost worker would."""

    def __init__(self, epoch):
        super().__init__()
        self.at = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.at:
            raise OSError("gone")


def test_from_the_first_epoch_on_there_is_a_checkpoint(tmp_path):
    """However long the time between two of them is."""
    torn, whole = tmp_path / "torn", tmp_path / "whole"
    few = ["epochs=3", "warmup_epochs=0"]
    with pytest.raises(OSError, match="gone"):
        survival_process.train(torn, "1h", few, callbacks=[Fail(1)])
    assert training.load_run(torn).info["status"] == "interrupted"
    survival_process.train(torn, "1h", few)
    survival_process.train(whole, "1h", few)
    assert_same_training(torn, whole)
    assert steps_taken(torn) == steps_taken(whole) == 66


class Signal(keras.callbacks.Callback):
    """Sends this process a signal at the end of an epoch, when it has been evaluated."""

    def __init__(self, epoch):
        super().__init__()
        self.at = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_step_leaves_what_is_left_to_do(tmp_path):
    few = ["epochs=2", "warmup_epochs=0", "early_stopping=5"]
    with pytest.raises(training.Interrupted, match="interrupted after step 44 of 44") as stop:
        survival_process.train(tmp_path / "run", "1h", few, callbacks=[Signal(1)], precise_bn=True)
    assert stop.value.signal == signal.SIGTERM
    assert training.load_run(tmp_path / "run").info["status"] == "interrupted"
    done = survival_process.train(tmp_path / "run", "1h", few, precise_bn=True)
    assert steps_taken(tmp_path / "run") == 44
    assert len(done.history) == 2
    assert training.load_run(tmp_path / "run").info["status"] == "finished"
    assert done.evaluation is not None


def test_an_interruption_after_the_training_says_where_the_checkpoint_is(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_resnet.training.step.Trainer.precise_statistics", interrupt)
    few = ["epochs=1", "warmup_epochs=0"]
    with pytest.raises(training.Interrupted, match="the last checkpoint is that of step 22"):
        survival_process.train(tmp_path / "run", "1h", few, precise_bn=True)


# What runs out


@pytest.mark.parametrize("keep", [1, 3])
def test_a_checkpoint_whose_manifest_cannot_be_written_costs_no_other(run_dir, monkeypatch, keep):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("keras_resnet.training.checkpoints.atomic_file", full)
        with pytest.raises(training.CheckpointError, match=r"step 35 .*No space left on device"):
            resume(run_dir, keep_checkpoints=keep)
    resume(run_dir, keep_checkpoints=keep, stop_after=8)
    kept = sorted(path.stem for path in (run_dir / "checkpoints").glob("*.json"))
    assert kept == ["step-35"] if keep == 1 else ["step-21", "step-28", "step-35"]


@pytest.mark.parametrize("keep", [0, -1, 1.5, True])
def test_a_number_of_checkpoints_that_cannot_be_is_refused(tmp_path, keep):
    with pytest.raises(ValueError, match=f"`keep`.*Received: keep={keep}"):
        resume(tmp_path / "run", keep_checkpoints=keep)


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(run_dir):
    kept = newest(run_dir, ".json").read_bytes()
    with pytest.raises(training.TrainingError, match=r"step 10 of epoch 2 \(step 32 of all\)"):
        resume(run_dir, spoil_at=32)
    steps = [path.name for path in (run_dir / "checkpoints").glob("*.json")]
    assert f"step-{4 * EVERY}.json" in steps
    assert newest(run_dir, ".json").read_bytes() == kept
    assert max(int(name.split("-")[1].split(".")[0]) for name in steps) <= 31
    resume(run_dir, stop_after=1)  # and it can be gone on from


# What batch normalization evaluates with: no loss of a training shows it.
HIDDEN = "stem_norm/moving_mean"


def test_weights_that_are_no_numbers_get_into_no_checkpoint(run_dir):
    message = "weights are no finite numbers after step 35"
    with pytest.raises(training.TrainingError, match=message):
        resume(run_dir, spoil_at=33, spoil=HIDDEN)
    assert not (run_dir / "checkpoints" / "step-35.json").exists()


def test_weights_that_are_no_numbers_are_found_at_the_end_of_an_epoch(tmp_path):
    message = "weights are no finite numbers after step 22"
    with pytest.raises(training.TrainingError, match=message):
        survival_process.train(tmp_path / "run", "1h", spoil_at=20, spoil=HIDDEN)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_ends_with_one_line_and_loses_nothing(run_dir):
    """A limit on the size of files stands for it: it fails in the same calls."""
    before = {
        path: path.read_bytes() for path in (run_dir / "checkpoints").iterdir() if path.is_file()
    }
    script = (
        "import resource, signal, sys\n"
        "import keras_resnet, tensorflow\n"
        "from survival_process import train\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        f"train({str(run_dir)!r}, {EVERY})\n"
    )
    process = run_python(script, cwd=HERE, status=1)
    last = process.stderr.strip().splitlines()[-1]
    assert "CheckpointError: The checkpoint of step 35 cannot be written" in last
    assert str(run_dir / "checkpoints") in last
    for path, content in before.items():
        if path.name != "checkpoint":
            assert path.read_bytes() == content
    resume(run_dir, stop_after=1)


# Being told to stop


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "keras_resnet", "train", *arguments],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path, number, status):
    run = tmp_path / "run"
    training_options = ["--model", "resnet8", "--data", "digits", "--recipe", "digits"]
    process = command(
        *training_options, "--set", "epochs=3", "--out", str(run), "--checkpoint-every", "5"
    )
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step-5.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    lines = errors.strip().splitlines()
    assert re.fullmatch(
        r"keras-resnet: interrupted after step \d+ of 66; the checkpoint is in .*", lines[-2]
    )
    how = f"go on with: keras-resnet train --resume --out {run} --checkpoint-every 5"
    assert lines[-1] == how
    step = re.search(r"after step (\d+) of", lines[-2])[1]
    assert (run / "checkpoints" / f"step-{step}.json").is_file()
    if number == signal.SIGTERM:
        return
    # Word for word what it says, and nothing more.
    process = command(*how.split()[5:])
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert f"going on after step {step} of 66" in out
    assert training.load_run(run).info["status"] == "finished"


def test_there_is_nothing_to_resume_where_nothing_is(tmp_path):
    process = command("--resume", "--out", str(tmp_path / "run"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip().endswith("start with --model and --data")
    assert not (tmp_path / "run").exists()
