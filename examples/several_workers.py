"""One training in several processes: the same program in each, which ends with the same weights.

    python examples/several_workers.py                 # two processes on this machine

On several machines, start `several_workers.py --workers 0 --out SHARED/run` on each: which worker
it is, and where the others are, it reads from TF_CONFIG or Slurm's variables (`examples/cluster`).
`keras-resnet train --workers 2` does as much for what needs no program of one's own.

On one machine, after three epochs:

    84.5% of 355 test images
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from own_architecture import OWN

import keras_resnet
from keras_resnet.quiet import import_tensorflow
from keras_resnet.training.launch import launch


def work(run_dir: Path, *, resume: bool) -> None:
    """What every worker does. The first one writes the run directory."""
    import_tensorflow()
    from keras_resnet import training

    result = training.fit(
        lambda: keras_resnet.create_model(OWN),  # a function: it is built where the strategy says
        "digits",
        # The batch is that of all workers together: 64 images, 32 for each of two.
        training.get_recipe("digits").replace(epochs=3, warmup_epochs=1),
        strategy="multiworker",
        run_dir=run_dir,
        resume=resume,
        force=not resume,
    )
    print(f"{result.evaluation.accuracy:.1%} of {result.evaluation.examples} test images")


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the workers, or is one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/several_workers"), metavar="RUN")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="0: be one; default: 2")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args(arguments)
    if options.workers == 0:
        work(options.out, resume=options.resume)
        return 0
    command = [sys.executable, __file__, "--workers", "0", "--out", str(options.out)]
    # If one dies, all start again with --resume. What the others say is in their logs.
    return launch(command, options.workers, log_directory=options.out / "workers")


if __name__ == "__main__":
    sys.exit(main())
