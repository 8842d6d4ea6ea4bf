"""Workers are started, watched, started again and stopped; none is left behind.

The workers of these tests are a few lines of Python that train nothing. They know the number of
the worker as `me`, of how many as `group`, and how often the group was started before as `starts`.
"""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# As a file, without the package: launching shall need nothing but the standard library.
LAUNCH = Path(__file__).parents[1] / "keras_resnet" / "training" / "launch.py"
LOAD = f"""
import importlib.util, signal, sys
# A shell lets what runs in its background ignore these, and so would all that is started there.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
spec = importlib.util.spec_from_file_location("launch", {str(LAUNCH)!r})
launch = sys.modules["launch"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launch)
"""
WORKER = """
import json, os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
config = json.loads(os.environ.get("TF_CONFIG", "{}"))
me, group = (config["task"]["index"], len(config["cluster"]["worker"])) if config else (0, 1)
with (here / f"starts-{me}").open("a") as file:
    file.write(" ".join(sys.argv[2:]) + "\\n")
starts = len((here / f"starts-{me}").read_text().splitlines()) - 1
(here / f"pid-{me}").write_text(str(os.getpid()))
def on(number, action):
    signal.signal(number, lambda *_: action())
def wait(seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
"""
# A worker that stops in good order when it is asked to.
OBEDIENT = """
on(signal.SIGINT, lambda: os._exit(130))
on(signal.SIGTERM, lambda: os._exit(143))
(here / f"ready-{me}").touch()
wait()
"""
# One that has lost the others a moment after worker 1 is gone, as TensorFlow finds out.
SURVIVOR = """
while (here / "pid-1").exists():
    time.sleep(0.01)
wait(0.2)
sys.exit(75)
"""


@pytest.fixture(scope="module")
def launch():
    namespace = {}
    exec(LOAD, namespace)
    yield namespace["launch"].launch
    del sys.modules["launch"]


def command_of(directory, code, *arguments):
    return [sys.executable, "-S", "-c", WORKER + code, str(directory), *arguments]


@pytest.fixture
def run(launch, tmp_path):
    """Launches workers that run some code; returns the exit status."""

    def run(code, workers=2, *, arguments=(), **options):
        command = command_of(tmp_path, code, *arguments)
        return launch(command, workers, log_directory=tmp_path / "logs", **options)

    return run


def starts(directory, worker=0):
    """The arguments of each start of a worker."""
    return (directory / f"starts-{worker}").read_text().splitlines()


# What a worker is given


def test_every_worker_knows_its_place_in_one_and_the_same_group(run, tmp_path):
    code = "(here / f'config-{me}').write_text(os.environ['TF_CONFIG'])"
    assert run(code, workers=3) == 0
    configs = [json.loads((tmp_path / f"config-{i}").read_text()) for i in range(3)]
    assert [config["task"] for config in configs] == [
        {"type": "worker", "index": i} for i in range(3)
    ]
    addresses = configs[0]["cluster"]["worker"]
    assert all(config["cluster"] == {"worker": addresses} for config in configs)
    assert len(set(addresses)) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", address) for address in addresses)


def test_a_worker_can_bind_its_address_and_nobody_else_is_given_it(run, tmp_path):
    code = """
import socket
address = config["cluster"]["worker"][me]
listener = socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])))
"""
    assert run(code, workers=3, max_restarts=0) == 0


def test_a_single_worker_is_no_group(run, tmp_path):
    assert run("sys.exit('TF_CONFIG' in os.environ)", workers=1) == 0
    assert not (tmp_path / "logs").exists()


def test_the_workers_share_the_processors(run, tmp_path, monkeypatch):
    code = """
names = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
(here / f'shares-{me}').write_text(json.dumps([os.environ.get(name) for name in names]))
"""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # somebody knows better
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-6a,7,9")
    assert run(code) == 0
    shares = [json.loads((tmp_path / f"shares-{i}").read_text()) for i in range(2)]
    assert shares == [["4", "5", "4,5"], ["4", "5", "GPU-6a,7"]]


@pytest.mark.parametrize("none", ["", "-1", "-1,0"])
def test_without_gpus_the_workers_are_left_without(none, run, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
    assert run("(here / str(me)).write_text(os.environ['CUDA_VISIBLE_DEVICES'])") == 0
    assert [(tmp_path / str(i)).read_text() for i in range(2)] == [none, none]


def test_two_workers_on_one_gpu_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ValueError, match=r"workers=2 for 1 GPUs \(3\).*CUDA_VISIBLE_DEVICES to -1"):
        run("")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("numbers", [(0, 3), (-1, 3), (2, -1)])
def test_numbers_that_make_no_sense_are_refused(numbers, run):
    workers, restarts = numbers
    with pytest.raises(ValueError, match=f"Received: workers={workers}, max_restarts={restarts}"):
        run("", workers, max_restarts=restarts)


def test_a_command_that_does_not_exist_leaves_nothing_running(launch, tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        launch(["no-such-program"], 2, log_directory=tmp_path)


# What a person sees


def test_the_chief_is_seen_and_the_others_are_in_their_logs(run, tmp_path, capfd):
    assert run("print('out', me); print('err', me, file=sys.stderr)", workers=3) == 0
    seen = capfd.readouterr()
    assert seen.out == "out 0\n"
    assert seen.err == "err 0\n"
    for i in (1, 2):
        lines = (tmp_path / "logs" / f"worker-{i}.log").read_text().splitlines()
        assert sorted(lines) == [f"err {i}", f"out {i}"]


def test_a_worker_that_fails_is_named_with_its_last_lines_and_not_started_again(
    run, tmp_path, capfd
):
    code = """
if me == 0:
    wait(1)
    sys.exit(75)
for i in range(100):
    print("line", i)
sys.exit("No space left on device")
"""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-1.log").write_text("of an earlier job\n" * 3)
    assert run(code) == 1
    assert starts(tmp_path, 1) == [""]
    log = tmp_path / "logs" / "worker-1.log"
    assert log.read_text().startswith("of an earlier job\n" * 3 + "line 0\n")
    shown = capfd.readouterr().err.splitlines()
    assert shown[0] == f"keras-resnet: worker 1 failed with exit status 1; the end of {log}:"
    assert shown[1:] == [*(f"  | line {i}" for i in range(86, 100)), "  | No space left on device"]


def test_of_an_early_failure_only_the_lines_of_this_start_are_shown(run, tmp_path, capfd):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-1.log").write_text("of an earlier job\n")
    assert run("wait(me == 0); sys.exit(3 if me else 75)") == 3
    assert capfd.readouterr().err.endswith("worker-1.log: (empty)\n")


def test_a_chief_that_fails_has_said_why_itself(run, capfd):
    assert run("wait(me != 0); sys.exit('bad argument' if me == 0 else 75)") == 1
    assert capfd.readouterr().err == "bad argument\n"


# The group starts again


def test_a_killed_worker_starts_the_whole_group_again_from_the_checkpoint(run, tmp_path, capfd):
    code = f"""
if starts == 0:
    if me == 1:
        (here / "pid-1").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    {SURVIVOR.replace(chr(10), chr(10) + "    ")}
"""
    arguments = ("train", "--force", "--out", "x")
    assert run(code, arguments=arguments, first_only=("--force",)) == 0
    for worker in (0, 1):
        assert starts(tmp_path, worker) == ["train --force --out x", "train --out x --resume"]
    assert capfd.readouterr().err == (
        "keras-resnet: worker 1 was killed by signal 9 (SIGKILL); restarting all 2 from the last "
        "checkpoint (1 of 3)\n"
    )


def test_what_has_not_begun_starts_again_as_it_was(run, tmp_path):
    """What --resume would go on from is an older run then, which --force shall overwrite."""
    arguments = ("train", "--force", "--out", "x")
    begun = iter([False, True])
    code = "sys.exit(0 if starts == 2 else 75)"
    status = run(code, arguments=arguments, first_only=("--force",), has_begun=lambda: next(begun))
    assert status == 0
    again = "train --force --out x"
    assert starts(tmp_path) == [again, again, "train --out x --resume"]


def test_the_kill_is_the_reason_even_where_the_others_fail_in_a_way_of_their_own(run, tmp_path):
    code = """
if starts == 0:
    if me == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait(0.5)
    sys.exit(1)
"""
    assert run(code) == 0
    assert len(starts(tmp_path)) == 2


def test_a_lost_peer_starts_the_group_again(run, tmp_path, capfd):
    """As when a network fails: every worker is there and sees no other."""
    assert run("sys.exit(0 if starts else 75)") == 0
    assert [len(starts(tmp_path, i)) for i in (0, 1)] == [2, 2]
    message = capfd.readouterr().err
    assert re.fullmatch(
        r"keras-resnet: worker [01] lost the others \(exit status 75\); restarting all 2 .*\n",
        message,
    )


def test_a_single_worker_that_is_killed_is_started_again(run, tmp_path, capfd):
    assert run("starts or os.kill(os.getpid(), signal.SIGSEGV)", workers=1) == 0
    assert starts(tmp_path) == ["", "--resume"]
    assert "signal 11 (SIGSEGV); restarting it from the last checkpoint" in capfd.readouterr().err


def test_a_flag_that_is_there_already_is_not_given_twice(run, tmp_path):
    code = "sys.exit(0 if starts == 2 else 75)"
    assert run(code, arguments=("--go-on", "a"), resume_flag="--go-on") == 0
    assert starts(tmp_path) == ["--go-on a", "a --go-on", "a --go-on"]


@pytest.mark.parametrize(
    ("ending", "status", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, r"worker [01] was killed by signal 9"),
        ("sys.exit(75)", 75, r"worker [01] lost the others"),
    ],
)
def test_the_restarts_are_counted(ending, status, reason, run, tmp_path, capfd):
    assert run(ending, max_restarts=2) == status
    assert [len(starts(tmp_path, i)) for i in (0, 1)] == [3, 3]
    lines = [
        line for line in capfd.readouterr().err.splitlines() if line.startswith("keras-resnet:")
    ]
    assert len(lines) == 3
    assert all(re.search(reason, line) for line in lines)
    assert lines[0].endswith("(1 of 2)")
    assert lines[1].endswith("(2 of 2)")
    assert "giving up after 2 restarts" in lines[2]


def test_a_worker_that_waits_for_ever_for_a_dead_one_is_killed(run, tmp_path):
    code = """
if starts == 0:
    if me == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    on(signal.SIGTERM, lambda: None)
    wait()
"""
    started = time.monotonic()
    assert run(code, settle=0.5) == 0
    assert time.monotonic() - started < 20
    assert len(starts(tmp_path)) == 2


def test_workers_that_have_finished_wait_for_one_that_has_not(run, tmp_path):
    """The chief writes files when the others have nothing left to do."""
    assert run("wait(1.5 * (me == 0)); (here / f'done-{me}').touch()", settle=0.2) == 0
    assert (tmp_path / "done-0").exists()
    assert len(starts(tmp_path)) == 1


def test_a_worker_that_somebody_stopped_ends_the_job_in_good_order(run, tmp_path, capfd):
    assert run("sys.exit(143)") == 143
    assert len(starts(tmp_path)) == 1
    assert capfd.readouterr().err == ""


# Signals


@contextlib.contextmanager
def launcher(directory, code, workers=2, **options):
    """A process that launches; it and what it has started are gone after the block."""
    arguments = dict(options, log_directory=str(directory / "logs"))
    command = command_of(directory, code)
    script = f"{LOAD}\nsys.exit(launch.launch({command!r}, {workers}, **{arguments!r}))"
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: all((directory / f"ready-{i}").exists() for i in range(workers)))
        yield process
    finally:
        process.kill()
        process.communicate()
        for path in directory.glob("pid-*"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Where nobody waits for orphans, they stay as zombies.
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids(directory):
    return [int(path.read_text()) for path in sorted(directory.glob("pid-*"))]


@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_signal_is_passed_on_and_waited_for(sent, status, tmp_path):
    with launcher(tmp_path, OBEDIENT.replace("os._exit(", "wait(0.5) or os._exit(")) as process:
        process.send_signal(sent)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == status
        assert not any(map(is_running, pids(tmp_path)))
    assert errors.decode() == (
        f"keras-resnet: {sent.name}: the workers write a checkpoint and stop; once more kills "
        "them\n"
    )
    assert len(starts(tmp_path)) == 1


def test_workers_that_finish_all_the_same_have_finished(tmp_path):
    code = "on(signal.SIGINT, lambda: os._exit(0)); (here / f'ready-{me}').touch(); wait()"
    with launcher(tmp_path, code) as process:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_a_failure_while_stopping_is_not_hidden(tmp_path):
    """A full disk, say, where the checkpoint should have gone."""
    code = OBEDIENT.replace("os._exit(143)", "os._exit(143 if me == 0 else 1)")
    with launcher(tmp_path, code) as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 1
    assert b"worker 1 failed with exit status 1" in errors
    assert len(starts(tmp_path)) == 1


def test_a_second_signal_kills(tmp_path):
    code = """
on(signal.SIGINT, lambda: (here / f"asked-{me}").touch())
on(signal.SIGTERM, lambda: None)
(here / f"ready-{me}").touch()
wait()
"""
    with launcher(tmp_path, code) as process:
        process.send_signal(signal.SIGINT)
        wait_until(lambda: all((tmp_path / f"asked-{i}").exists() for i in range(2)))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
        assert not any(map(is_running, pids(tmp_path)))


def test_signals_mean_what_they_did_before_when_the_job_is_done(run):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run("") == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# No orphans


@pytest.mark.parametrize("stubborn", [False, True])
def test_no_worker_outlives_a_launcher_that_was_killed(stubborn, tmp_path):
    code = OBEDIENT
    if stubborn:
        code = code.replace("os._exit(143)", "(here / f'asked-{me}').touch()")
    with launcher(tmp_path, code, grace=0.5) as process:
        workers = pids(tmp_path)
        assert all(map(is_running, workers))
        process.kill()
        wait_until(lambda: not any(map(is_running, workers)))
    # They were asked first, so that they could write a checkpoint.
    assert (tmp_path / "asked-0").exists() is stubborn


def test_what_a_worker_has_started_does_not_outlive_it(run, tmp_path):
    code = """
if os.fork() == 0:
    (here / "pid-child").write_text(str(os.getpid()))
    wait()
while not (here / "pid-child").exists():
    time.sleep(0.01)
"""
    assert run(code, workers=1) == 0
    child = int((tmp_path / "pid-child").read_text())
    wait_until(lambda: not is_running(child), seconds=5)


# A training


def start_training(directory):
    """Two workers that train the smallest network of the family for 2 × 11 steps."""
    words = "train --workers 2 --model resnet8 --data digits --recipe digits --checkpoint-every 4"
    changes = ("batch_size=128", "epochs=2", "warmup_epochs=1")
    options = [word for change in changes for word in ("--set", change)]
    return subprocess.Popen(
        [sys.executable, "-m", "keras_resnet", *words.split(), *options, "--out", str(directory)],
        env={k: v for k, v in os.environ.items() if k != "TF_CONFIG"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def workers_of(launcher):
    """The process numbers of its workers, in the order of their start."""
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=2) for line in table.stdout.splitlines()]
    return sorted(
        int(pid)
        for pid, parent, arguments in rows
        if int(parent) == launcher.pid and " train " in arguments
    )


def finished(process):
    """What a job has said, after it has ended well."""
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return said


def history_of(run):
    """What the epochs gave, without how long they took."""
    with (run / "history.csv").open(newline="") as file:
        return [
            {key: float(value) for key, value in row.items() if key != "images_per_second"}
            for row in csv.DictReader(file)
        ]


def test_a_training_that_loses_a_worker_ends_as_one_that_does_not(tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    jobs = [start_training(run) for run in (undisturbed, disturbed)]
    try:
        second = jobs[1]
        # In the first epoch, with 14 steps to go.
        checkpoint = disturbed / "checkpoints" / "step-8.index"
        wait_until(lambda: checkpoint.exists() or second.poll() is not None, seconds=300)
        os.kill(workers_of(second)[1], signal.SIGKILL)
        said = finished(second)
        finished(jobs[0])
    finally:
        for job in jobs:
            job.kill()
    assert "worker 1 was killed by signal 9 (SIGKILL); restarting all 2" in said
    assert len(history_of(undisturbed)) == 2
    assert history_of(disturbed) == history_of(undisturbed)
