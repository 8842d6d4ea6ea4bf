"""What can be known of the cluster examples without a cluster."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from keras_resnet import cli
from keras_resnet.training.launch import EXIT_LOST_PEER

DIRECTORY = Path(__file__).parent.parent / "examples" / "cluster"
SCRIPT = (DIRECTORY / "train.sbatch").read_text(encoding="utf-8")
MANIFEST = yaml.safe_load((DIRECTORY / "tfjob.yaml").read_text(encoding="utf-8"))
README = (DIRECTORY / "README.md").read_text(encoding="utf-8")


def options_of(words):
    program, *arguments = words
    assert program == "keras-resnet"
    return cli.make_parser().parse_args(arguments)


def command_of_script():
    (command,) = re.findall(r"^srun .*?(keras-resnet .*?[^\\])$", SCRIPT, re.DOTALL | re.MULTILINE)
    return shlex.split(command.replace("\\\n", " "))


def command_of_manifest():
    return MANIFEST["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0][
        "command"
    ]


@pytest.mark.parametrize("command", [command_of_script, command_of_manifest])
def test_the_commands_parse_and_go_on_from_a_checkpoint(command):
    options = options_of(command())
    assert options.command == "train"
    assert options.strategy == "multiworker"
    # Whoever starts the job again starts the same command.
    assert options.resume
    assert not options.force


def test_the_batch_is_a_multiple_of_the_gpus_of_both_examples():
    lines = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", SCRIPT, re.MULTILINE))
    worker = MANIFEST["spec"]["tfReplicaSpecs"]["Worker"]
    container = worker["template"]["spec"]["containers"][0]
    gpus = {
        int(lines["nodes"]) * int(lines["gpus-per-node"]),
        worker["replicas"] * container["resources"]["limits"]["nvidia.com/gpu"],
    }
    assert gpus == {32}
    assert lines["ntasks-per-node"] == "1"
    for command in (command_of_script(), command_of_manifest()):
        assert options_of(command).set == ["batch_size=4096"]
    assert 4096 % 32 == 0


def test_the_script_is_bash():
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    done = subprocess.run(
        [bash, "-n", DIRECTORY / "train.sbatch"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("status", "again"), [(0, 0), (1, 0), (2, 0), (75, 1), (137, 1), (143, 1)])
@pytest.mark.parametrize("restarts", ["0", "20"])
def test_the_script_queues_the_job_again_where_that_helps(status, again, restarts, tmp_path):
    """With a srun and a scontrol of our own."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    programs = {"srun": f"exit {status}", "scontrol": f'echo "$@" >> {tmp_path}/queued'}
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!{bash}\n{does}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": restarts,
    }
    done = subprocess.run([bash, DIRECTORY / "train.sbatch"], env=environment, check=False)
    assert done.returncode == status
    queued = tmp_path / "queued"
    expected = "requeue 7\n" if again and restarts == "0" else None
    assert (queued.read_text() if queued.exists() else None) == expected


def test_the_manifest_starts_a_worker_that_lost_the_others_again():
    worker = MANIFEST["spec"]["tfReplicaSpecs"]["Worker"]
    # ExitCode would be right only if the operator took the status for a passing one: from 128 on.
    assert EXIT_LOST_PEER < 128
    assert worker["restartPolicy"] == "OnFailure"
    assert list(MANIFEST["spec"]["tfReplicaSpecs"]) == ["Worker"]


def test_every_command_of_the_walk_through_parses():
    lines = re.findall(r"^keras-resnet .*", README, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        assert options_of(shlex.split(line)).command == "train"


def test_both_examples_say_that_nobody_has_run_them():
    assert "NOT RUN ON A CLUSTER" in SCRIPT
    assert "NOT RUN ON A CLUSTER" in (DIRECTORY / "tfjob.yaml").read_text(encoding="utf-8")
    assert "Neither has been run on a cluster" in README
