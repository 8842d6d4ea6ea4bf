"""The command keras-resnet: a module for each group of subcommands.

Every import of weight is inside the subcommand that needs it, so that `--help` answers at once and
`verify` and `classify` run where there is neither TensorFlow nor Keras.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from keras_resnet import __version__
from keras_resnet.cli import environment, export, networks, training
from keras_resnet.cli.common import EXIT_FAILED, fail


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    0; 1 (it failed, one line said why); 2 (usage); 75 (a training lost another worker, and may be
    started again); 128 and the number of the signal that ended it, 130 for Ctrl-C.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    options = make_parser().parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt as interruption:
        number = getattr(interruption, "signal", signal.SIGINT)
        print(f"keras-resnet: {str(interruption) or 'interrupted'}", file=sys.stderr)
        if str(interruption):  # of a training that can go on
            print(f"go on with: {training.how_to_go_on(options)}", file=sys.stderr)
        return 128 + int(number)
    except BrokenPipeError:  # the reader of a pipe, e.g. head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if options.debug:
            report = environment.write_error_report(error, options.arguments)
            print(f"keras-resnet: all that a report should hold is in {report}", file=sys.stderr)
            raise
        return _explained(error, options)


def _explained(error: Exception, options: argparse.Namespace) -> int:
    """One line for an error that is the user's to mend; any other is raised again."""
    if isinstance(error, ModuleNotFoundError):
        return fail(f"{options.command} needs {error.name}, which is not installed here")
    strategies = sys.modules.get("keras_resnet.training.strategies")
    if strategies is not None and strategies.is_lost_peer(error):
        from keras_resnet.training.launch import EXIT_LOST_PEER

        fail(f"another worker was lost: {str(error).splitlines()[0]}")
        return EXIT_LOST_PEER
    known = isinstance(error, ValueError | OSError | RuntimeError)
    if known or type(error).__module__.startswith("tensorflow."):
        return fail(str(error))
    raise error


def _completion(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(make_parser(), shell=options.shell))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; what it returns has a function `run` of itself."""
    parser = argparse.ArgumentParser(
        prog="keras-resnet",
        description="Residual networks from the paper to the phone.",
        epilog="Example:\n"
        "  keras-resnet train --model resnet20 --data digits --recipe digits --out runs/digits\n"
        "  keras-resnet export runs/digits --scheme int8 --out digits-int8\n"
        "  keras-resnet classify digits-int8 photograph.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"keras-resnet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"Example:\n  keras-resnet {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # arguments are passed on to workers, where each must be findable
        )
        command.set_defaults(run=run)
        command.add_argument(
            "--debug", action="store_true", help="of an error, show a traceback and write a report"
        )
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
        return command

    for group in (training, export, networks):
        group.add_commands(add)
    completion = add(
        "completion",
        _completion,
        "print a script that completes commands and options",
        "bash > ~/.local/share/bash-completion/completions/keras-resnet",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser
