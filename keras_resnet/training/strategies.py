"""Names for `tf.distribute` strategies, and the clusters that an environment describes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

# A Slurm step's tasks on one node listen on the ports from here on; which, the job's number says,
# for two jobs may share a node. All below 32768, where Linux begins to hand out ports by itself.
_SLURM_PORTS, _PORTS_PER_JOB, _SLURM_JOBS = 12288, 64, 256
# What trains. A cluster may have parameter servers and evaluators too, but not for this loop.
_TRAINING_JOBS = ("chief", "worker")

_LOSSES = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,  # the peer has started anew
    tf.errors.InternalError,  # what NCCL reports
    tf.errors.CancelledError,
)
_LOST_WORDS = (
    "collective ops is aborted",
    "tensorflow.workerservice",
    "coordinationservice",
    "coordination service",
)


class AddressError(OSError):
    """A worker cannot listen on the address that its cluster knows it by."""


def resolve_strategy(
    strategy: str | tf.distribute.Strategy | None = None,
) -> tf.distribute.Strategy:
    """The strategy of a name.

    Args:
        strategy: `"auto"` or None (multi-worker if the environment describes a cluster of several
            workers, mirrored if there are several GPUs, else default), `"default"`, `"mirrored"`,
            `"mirrored:N"` (the first N GPUs, or without GPUs the first N logical CPU devices),
            `"multiworker"`, or a strategy, which passes as it is.

    A cluster is described by `TF_CONFIG`, which comes first, or by the variables that Slurm's
    `srun` sets in the tasks of a job step. `"multiworker"` waits until all workers are there.

    Raises:
        ValueError: for another name, for more devices than there are, for a `TF_CONFIG` that
            describes no cluster, or for `"multiworker"` without a cluster.
        AddressError: if this worker's port is taken.
    """
    if isinstance(strategy, tf.distribute.Strategy):
        return strategy
    if strategy in (None, "auto"):
        # Looking for GPUs starts TensorFlow, after which it can join no cluster.
        if _is_cluster():
            strategy = "multiworker"
        else:
            several = len(tf.config.list_logical_devices("GPU")) > 1
            strategy = "mirrored" if several else "default"
    if strategy == "default":
        return tf.distribute.get_strategy()
    if strategy == "multiworker":
        return _multiworker()
    kind, _, count = str(strategy).partition(":")
    if kind != "mirrored" or (count and not (count.isdecimal() and int(count))):
        raise ValueError(
            "Argument `strategy` must be 'auto', 'default', 'mirrored', 'mirrored:N', "
            f"'multiworker' or a tf.distribute.Strategy. Received: {strategy!r}"
        )
    return _mirrored(int(count) if count else None)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().jobs
    )


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another worker is gone, or that this one could not join.

    The same command may well succeed when all workers are started again, in contrast to what is
    wrong with the data or the network: hence the exit status `launch.EXIT_LOST_PEER`.

    TensorFlow 2.21 raises `UnavailableError` within 2 s of the death of another worker's process,
    whichever it was, and within 11 s of its last sign of life where the connection stays open (a
    machine that hangs, a network that is gone).
    """
    if isinstance(error, AddressError):
        return True
    message = str(error).lower()
    return isinstance(error, _LOSSES) and any(words in message for words in _LOST_WORDS)


def _mirrored(count: int | None) -> tf.distribute.Strategy:
    devices = [
        device.name
        for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    ]
    wanted = count or len(devices)
    if wanted > len(devices):
        raise ValueError(
            f"Strategy 'mirrored:{wanted}' needs {wanted} devices; this machine has "
            f"{len(devices)}: {devices}"
        )
    return tf.distribute.MirroredStrategy(devices[:wanted])


# Clusters


def _is_cluster() -> bool:
    """Whether the environment describes several workers, of which this process is one."""
    if os.environ.get("TF_CONFIG"):
        return _count_workers(_read_tf_config(os.environ["TF_CONFIG"])) > 1
    return _is_slurm_step(os.environ)


def _multiworker() -> tf.distribute.Strategy:
    if os.environ.get("TF_CONFIG"):
        _read_tf_config(os.environ["TF_CONFIG"])
        resolver = _TFConfigResolver()
    elif _is_slurm_step(os.environ):
        resolver = _SlurmResolver()
    else:
        # TensorFlow would train alone, on every machine.
        raise ValueError(
            "Strategy 'multiworker' needs a cluster: set TF_CONFIG on every worker, start several "
            "tasks with Slurm's srun, or start several workers on this machine with "
            "`keras-resnet train --workers N`. Received: neither TF_CONFIG nor SLURM_PROCID with "
            "SLURM_STEP_NUM_TASKS above 1"
        )
    try:
        # Its choice of collectives is right: NCCL for GPUs, rings over gRPC for CPUs. A time limit
        # of ours would start a thread for every collective; lost peers are noticed without.
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except tf.errors.UnknownError as error:
        if "Could not start gRPC server" not in str(error):
            raise
        raise AddressError(
            f"Worker {resolver.task_id} cannot listen on its address, "
            f"{resolver.cluster_spec().task_address(resolver.task_type, resolver.task_id)}: "
            "another program has the port"
        ) from error


def _read_tf_config(text: str) -> dict[str, Any]:
    """TF_CONFIG as a dictionary, after making sure that it describes a cluster and a task in it."""
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise _tf_config_error(f"not JSON ({error})", text) from error
    if not isinstance(config, dict):
        raise _tf_config_error("not a JSON object", text)
    cluster, task = config.get("cluster"), config.get("task")
    if not isinstance(cluster, dict) or not any(cluster.get(job) for job in _TRAINING_JOBS):
        raise _tf_config_error("a `cluster` without workers", text)
    for job, addresses in cluster.items():
        if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
            raise _tf_config_error(f"no list of addresses for {job!r}", text)
    if not isinstance(task, dict) or not {"type", "index"} <= set(task):
        raise _tf_config_error("no `task` with `type` and `index`", text)
    if task["type"] not in _TRAINING_JOBS:
        raise _tf_config_error(f"a task {task['type']!r}, for which this training has no use", text)
    tasks = len(cluster.get(task["type"], ()))
    index = str(task["index"])
    if not index.isdecimal() or int(index) >= tasks:
        raise _tf_config_error(
            f"task {task['type']} {task['index']} of a cluster with {tasks}", text
        )
    return config


def _tf_config_error(what: str, text: str) -> ValueError:
    return ValueError(
        "The environment variable TF_CONFIG must describe a cluster and this worker's place in it, "
        'e.g. {"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", '
        '"index": 0}}, with "chief" as a second possible type; unset it to train alone. Received: '
        f"{what}: {text[:500]}"
    )


def _count_workers(config: Mapping[str, Any]) -> int:
    return sum(len(config["cluster"].get(job, ())) for job in _TRAINING_JOBS)


class _TFConfigResolver(tf.distribute.cluster_resolver.TFConfigClusterResolver):
    """TensorFlow's resolver, without the tasks that do not train: the strategy waits for all."""

    def cluster_spec(self) -> tf.train.ClusterSpec:
        jobs = super().cluster_spec().as_dict()
        return tf.train.ClusterSpec({job: jobs[job] for job in _TRAINING_JOBS if job in jobs})


def _is_slurm_step(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks that `srun` has started.

    An allocation of many tasks says nothing: its shell and its batch script have one of them.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    return "SLURM_PROCID" in environment and tasks.isdecimal() and int(tasks) > 1


class _SlurmResolver(tf.distribute.cluster_resolver.SlurmClusterResolver):
    """TensorFlow's resolver, but for four things that it gets wrong.

    It sorts the hosts as words, so that on n2 and n10 the ranks do not fit the addresses; it fails
    without GPUs (a `range` with step 0, or a missing nvidia-smi); it numbers the GPUs itself where
    Slurm has already given each task its own; and its port, 8888, is the same for all jobs.
    """

    def __init__(self) -> None:
        # Not even asked: a GPU per task is what makes it compute nothing.
        tasks = self._resolve_num_tasks()
        super().__init__(gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False)
        job = int(os.environ.get("SLURM_JOB_ID", "0"))
        self._first_port = _SLURM_PORTS + _PORTS_PER_JOB * (job % _SLURM_JOBS)
        self.task_type, self.task_id = "worker", self._resolve_own_rank()
        self._choose_gpus()

    def cluster_spec(self) -> tf.train.ClusterSpec:
        """One worker per task, in the order of Slurm's ranks (its default, block distribution)."""
        workers = [
            f"{host}:{self._first_port + i}"
            for host, tasks in self._resolve_task_configuration().items()
            for i in range(tasks)
        ]
        return tf.train.ClusterSpec({"worker": workers})

    def num_accelerators(self, *_: Any, **__: Any) -> dict[str, int]:
        """Of this worker, whichever is asked for: all are alike."""
        return {"GPU": len(tf.config.get_visible_devices("GPU"))}

    def _choose_gpus(self) -> None:
        """Takes a part of the node's GPUs, where every task of it sees all of them."""
        if {"SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"} & set(os.environ):
            return
        own = int(os.environ.get("SLURM_LOCALID", "0"))
        tasks = max(self._resolve_task_configuration().values())
        gpus = tf.config.list_physical_devices("GPU")
        each = len(gpus) // tasks
        if tasks > 1 and each:  # else each sees its own, or all belong to the one task
            tf.config.set_visible_devices(gpus[own * each : (own + 1) * each], "GPU")
