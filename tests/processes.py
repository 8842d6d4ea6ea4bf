"""Programs that run in a process of their own."""

import os
import subprocess
import sys
import textwrap


def start_python(*arguments, python=sys.executable, cwd=None, **environment):
    """A fresh Python with these arguments, or with a script of several lines and its arguments."""
    if "\n" in arguments[0]:
        arguments = ("-c", textwrap.dedent(arguments[0]), *arguments[1:])
    clean = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return subprocess.Popen(
        [python, *arguments],
        cwd=cwd,
        env=clean | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process, status=0):
    """What it printed and complained of; it must end so."""
    output, errors = process.communicate(timeout=400)
    assert process.returncode == status, errors[-5000:]
    return subprocess.CompletedProcess(process.args, status, output, errors)


def run_python(*arguments, status=0, **options):
    """`start_python`, and its outcome."""
    return outcome(start_python(*arguments, **options), status)
