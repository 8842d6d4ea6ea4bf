"""Starts the workers of a training on this machine, watches them, and starts them again.

It knows nothing of training: a worker is a command that reads its place in the group from
TF_CONFIG, goes on from its last checkpoint when it gets the resume flag, stops in good order on
SIGINT and SIGTERM, and exits with `EXIT_LOST_PEER` when another worker is gone. POSIX only.

The standard library is all it imports: this file also runs by itself, see `_keep`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

# sysexits.h calls it EX_TEMPFAIL: the same command may well succeed when it is started again.
EXIT_LOST_PEER = 75

# What a worker exits with that has stopped because it was asked to.
_EXITS_ASKED_FOR = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_SIGNALLED = range(-255, 0)
_POLL_SECONDS = 0.1
_TAIL_LINES = 15


def launch(
    command: Sequence[str],
    workers: int,
    *,
    log_directory: str | os.PathLike[str],
    max_restarts: int = 3,
    resume_flag: str = "--resume",
    first_only: Sequence[str] = (),
    has_begun: Callable[[], bool] = lambda: True,
    settle: float = 20.0,
    grace: float = 30.0,
) -> int:
    """Runs a command as a group of workers that train as one; returns the exit status to pass on.

    Every worker gets its own TF_CONFIG with free ports of the loopback interface, and its share of
    the CPUs and GPUs. The chief, worker 0, has the standard output and error of this process; the
    others write to `worker-1.log`, `worker-2.log`, … When a worker is killed, crashes or loses the
    others, the whole group starts again: one worker alone could not join a running group. SIGINT,
    SIGTERM and SIGHUP are passed on, and a second one kills. No worker outlives this process, not
    even if it is killed with SIGKILL: a second process sees to it.

    Args:
        command: program and arguments of one worker.
        workers: how many to start. One is no group and gets no TF_CONFIG, but is started again too.
        log_directory: where the log files go; it is made. What they hold already is added to.
        max_restarts: how often the group is started again before giving up.
        resume_flag: argument to add when the group starts again.
        first_only: arguments to leave out when the group starts again, such as one that would
            overwrite what the first start has written.
        has_begun: whether there is something of this job to go on from; where there is not, the
            group starts again by the command as it is.
        settle: seconds that the others have to end by themselves after one has failed. A worker
            hears of a dead process within 2 s and of a silent one within 11 s (measured with
            TensorFlow 2.21), but one that still waits for its group to form would wait for ever.
        grace: seconds between SIGTERM and SIGKILL for workers whose launcher was killed.

    Returns:
        0 if all workers returned 0; the exit status of a worker that failed by itself, such as for
        a wrong argument, which would only repeat itself; `EXIT_LOST_PEER`, or 128 + the number of
        the signal that killed a worker, when the restarts are used up; 128 + the number of the
        signal that stopped the job.

    Raises:
        ValueError: for fewer GPUs than workers, no worker, or a negative number of restarts.
        OSError: if the command cannot be started or a log file not be written.
    """
    if workers < 1 or max_restarts < 0:
        raise ValueError(
            "Arguments `workers` and `max_restarts` must be at least 1 and 0. Received: "
            f"workers={workers}, max_restarts={max_restarts}"
        )
    shares = _shares(workers, os.environ)
    directory = Path(log_directory)
    if workers > 1:
        directory.mkdir(parents=True, exist_ok=True)
    arguments = list(command)
    with _Signals() as signals:
        for restart in range(1, max_restarts + 2):
            with _Group(arguments, shares, directory, grace) as group:
                group.wait(signals, settle)
            verdict = _judge(group.ends, signals.first)
            if not verdict.reason:
                break
            _restore_terminal()
            if not verdict.again or restart > max_restarts:
                after = f"; giving up after {max_restarts} restarts" if verdict.again else ""
                _say(f"{verdict.reason}{after}{group.last_lines(verdict.worker)}")
                break
            who = "it" if workers == 1 else f"all {workers}"
            _say(
                f"{verdict.reason}; restarting {who} from the last checkpoint "
                f"({restart} of {max_restarts})"
            )
            if has_begun():
                arguments = [word for word in command if word not in (resume_flag, *first_only)]
                arguments.append(resume_flag)
    return verdict.status


# How a group ended


@dataclasses.dataclass(frozen=True)
class _End:
    """Of one worker: its exit status, minus a signal's number, or None if killed from here."""

    worker: int
    status: int | None


@dataclasses.dataclass(frozen=True)
class _Verdict:
    """The status to pass on, whether another start may help, and what to tell of which worker."""

    status: int
    again: bool = False
    worker: int = 0
    reason: str = ""


def _judge(ends: Sequence[_End], stopped_by: int | None) -> _Verdict:
    """Looks at the group as a whole; `ends` are in the order in which the workers ended.

    A worker that fails takes the others with it, so the first failure says why the group ended,
    except a loss: the worker that was lost may take longer to exit than others to notice it.
    """
    failures = [end for end in ends if end.status not in (0, None, *_EXITS_ASKED_FOR)]
    reasons = [end for end in failures if end.status != EXIT_LOST_PEER] or failures
    if stopped_by is not None:  # that workers are lost and killed is what one expects then
        reasons = [end for end in reasons if end.status not in (EXIT_LOST_PEER, *_SIGNALLED)]
    if not reasons:
        unfinished = [end.status or 0 for end in ends if end.status != 0]
        if unfinished and stopped_by is not None:
            return _Verdict(128 + stopped_by)
        return _Verdict(max(unfinished, default=0))
    worker, status = reasons[0].worker, reasons[0].status or 0
    if status in _SIGNALLED:
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-status, "unknown")
        reason = f"worker {worker} was killed by signal {-status} ({name})"
        return _Verdict(128 - status, True, worker, reason)
    if status == EXIT_LOST_PEER:
        reason = f"worker {worker} lost the others (exit status {status})"
        return _Verdict(status, True, worker, reason)
    if any(end.worker == 0 and end.status == status for end in reasons):
        return _Verdict(status)  # the chief has said on the terminal what is wrong with all
    return _Verdict(status, False, worker, f"worker {worker} failed with exit status {status}")


# A group of processes


class _Group:
    """Worker processes from their start to the end of the last one, in a process group."""

    def __init__(
        self,
        command: Sequence[str],
        shares: Sequence[Mapping[str, str]],
        log_directory: Path,
        grace: float,
    ):
        self._command = command
        self._shares = shares
        self._grace = grace
        self._logs = [log_directory / f"worker-{i}.log" for i in range(len(shares))]
        self._offsets = [0] * len(shares)  # where in its log this start of a worker begins
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._killed: set[int] = set()
        self._resources = contextlib.ExitStack()
        self.ends: list[_End] = []

    def __enter__(self) -> _Group:
        with contextlib.ExitStack() as stack:
            keeper = stack.enter_context(_Keeper(self._grace))
            ports = [_free_port(stack) for _ in self._shares]
            for worker in range(len(self._shares)):
                process = self._start(worker, ports, keeper.process_group)
                stack.callback(process.wait)
                stack.callback(process.kill)
                keeper.watch(process.pid)
                self._running[worker] = process
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def _start(
        self, worker: int, ports: Sequence[int], process_group: int
    ) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        environment |= self._shares[worker]
        if len(ports) > 1:
            cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
            task = {"type": "worker", "index": worker}
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
        with contextlib.ExitStack() as stack:
            log = None
            if worker:
                environment["PYTHONUNBUFFERED"] = "1"  # what a killed worker has said is not lost
                log = stack.enter_context(self._logs[worker].open("ab"))
                self._offsets[worker] = log.tell()
            return subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Not the launcher's group: Ctrl-C in a terminal shall reach them once, from here.
                process_group=process_group,
            )

    def wait(self, signals: _Signals, settle: float) -> None:
        """Returns when all workers have ended; notes the ends, and passes signals on."""
        passed_on = 0
        deadline = float("inf")
        while self._running:
            time.sleep(_POLL_SECONDS)
            if self._note_ends():
                deadline = min(deadline, time.monotonic() + settle)
            if time.monotonic() > deadline or len(signals.received) > 1:
                self._kill()
            elif len(signals.received) > passed_on:
                passed_on = len(signals.received)
                self._pass_on(signals.received[0])

    def _note_ends(self) -> bool:
        """Takes those that have ended off the running; returns whether one of them has failed."""
        codes = {worker: process.poll() for worker, process in self._running.items()}
        ended = [
            _End(worker, None if worker in self._killed else code)
            for worker, code in codes.items()
            if code is not None
        ]
        for end in ended:
            del self._running[end.worker]
        # Seen at the same moment, a kill is the reason and the others' statuses are what follows.
        ended.sort(key=lambda end: end.status is None or end.status >= 0)
        self.ends += ended
        return any(end.status not in (0, *_EXITS_ASKED_FOR) for end in ended)

    def _pass_on(self, number: int) -> None:
        passed = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        _say(
            f"{signal.Signals(number).name}: the workers write a checkpoint and stop; once more "
            "kills them"
        )
        for process in self._running.values():
            process.send_signal(passed)

    def _kill(self) -> None:
        for worker, process in self._running.items():
            self._killed.add(worker)
            process.kill()

    def last_lines(self, worker: int) -> str:
        """What a worker wrote last, with the file's name; the chief's stands on the terminal."""
        if worker == 0:
            return ""
        with self._logs[worker].open("rb") as log:
            log.seek(self._offsets[worker])
            lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        shown = "".join(f"\n  | {line}" for line in lines)
        return f"; the end of {self._logs[worker]}:{shown or ' (empty)'}"


def _free_port(stack: contextlib.ExitStack) -> int:
    """A port of the loopback interface that is free."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    if sys.platform == "linux":
        # It stays bound, so that nobody else is given the port before the worker has it. With this
        # option, which a gRPC server sets as well, Linux lets the worker bind it all the same.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return int(listener.getsockname()[1])
    # Elsewhere somebody may be quicker; that worker exits with EXIT_LOST_PEER, and all start again.
    port = int(listener.getsockname()[1])
    listener.close()
    return port


# What a worker gets of the machine


def _shares(workers: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment variables that give each worker its part of the CPUs and GPUs."""
    linux = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    threads = str(max(1, cpus // workers))
    shared = {
        name: environment.get(name, threads)
        for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")
    }
    gpus = _gpus(environment)
    if not gpus:
        return [dict(shared) for _ in range(workers)]
    if len(gpus) < workers:
        raise ValueError(
            f"Each worker needs a GPU of its own. Received: workers={workers} for {len(gpus)} GPUs "
            f"({','.join(gpus)}); start fewer, or set CUDA_VISIBLE_DEVICES to -1 to train on CPUs"
        )
    each = len(gpus) // workers
    return [
        shared | {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])}
        for i in range(workers)
    ]


def _gpus(environment: Mapping[str, str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # CUDA takes those before the first that is no device.
        bad = [i for i, name in enumerate(names) if name in ("", "-1")]
        return names[: bad[0]] if bad else names
    if not shutil.which("nvidia-smi"):
        return []
    listing = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    found = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    return [str(i) for i in range(len(found))]


# Signals and messages


class _Signals:
    """Collects the signals that ask this process to stop, while it is entered."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    @property
    def first(self) -> int | None:
        return self.received[0] if self.received else None

    def __enter__(self) -> _Signals:
        # Elsewhere Python does not let us; whoever has started that thread has to stop it then.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)


def _say(message: str) -> None:
    sys.stderr.write(f"keras-resnet: {message}\n")
    sys.stderr.flush()


def _restore_terminal() -> None:
    """A worker that was killed leaves half a progress bar, and no cursor."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K\x1b[?25h")


# The keeper: a process that ends the workers when the launcher is gone, however it went


class _Keeper:
    """The process that runs `_keep`, and leads the process group that the workers join."""

    def __init__(self, grace: float):
        self._grace = grace

    def __enter__(self) -> _Keeper:
        reading, self._pipe = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(self._grace)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(reading)
        self.process_group = self._process.pid
        return self

    def watch(self, pid: int) -> None:
        """Names a member of the group: when all are gone, the keeper need not wait any longer."""
        os.write(self._pipe, f"{pid}\n".encode())

    def __exit__(self, *exception: object) -> None:
        """Ends the keeper, and whatever its workers have left behind."""
        # macOS forbids signals to a group of processes that have all ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process_group, signal.SIGKILL)
        os.close(self._pipe)
        self._process.wait()


def _keep(grace: float) -> None:
    """Waits until the launcher's end of the pipe is closed, and ends its own process group.

    A pipe is closed whatever its holder dies of. The launcher kills this process when all is well.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    workers = [int(pid) for pid in sys.stdin.buffer.read().split()]
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while any(map(_is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # gone, or by now somebody else's
        return False
    return True


if __name__ == "__main__":
    _keep(float(sys.argv[1]))
