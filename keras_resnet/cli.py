"""The command keras-resnet.

Every import of weight is inside the subcommand that needs it, so that `--help` answers at once and
`verify` and `classify` run where there is neither TensorFlow nor Keras.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_resnet import __version__, architecture
from keras_resnet.quiet import held_back_stderr, import_tensorflow

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130

_DATA_HELP = "digits, folder:PATH or tfds:NAME"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 (it failed, one line said why), 2 (usage) or 130 (Ctrl-C)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        print("keras-resnet: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, e.g. head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        if options.debug:
            raise
        return _fail(f"{options.command} needs {error.name}, which is not installed here")
    except Exception as error:
        known = isinstance(error, ValueError | OSError | RuntimeError)
        from_tensorflow = type(error).__module__.startswith("tensorflow.")
        if options.debug or not (known or from_tensorflow):
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"keras-resnet: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
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

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, example: str) -> Any:
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"Example:\n  keras-resnet {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        command.add_argument("--debug", action="store_true", help="show a traceback of an error")
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
        return command

    train = add(
        "train",
        _train,
        "train a network and write a run directory",
        "--model resnet20 --data folder:photographs --recipe small --out runs/photographs",
    )
    train.add_argument("--model", required=True, metavar="NAME", help="see keras-resnet list")
    train.add_argument("--data", required=True, metavar="DATA", help=_DATA_HELP)
    train.add_argument("--recipe", default="small", metavar="NAME", help="default: small")
    train.add_argument("--out", required=True, metavar="RUN", help="directory to write")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe, e.g. epochs=5; may be repeated",
    )
    train.add_argument("--input-size", type=_positive, metavar="N", help="pixels; default: its own")
    train.add_argument(
        "--strategy", default="auto", help="auto, default, mirrored[:N], multiworker"
    )
    train.add_argument("--seed", type=int, default=0, help="default: 0")
    train.add_argument("--skip-bad-images", action="store_true", help="leave out broken files")
    train.add_argument("--force", action="store_true", help="overwrite the run that is there")

    evaluate = add("evaluate", _evaluate, "measure a trained network on test images", "runs/digits")
    evaluate.add_argument("model", metavar="RUN", help="run directory, or .keras file of ours")
    evaluate.add_argument("--data", metavar="DATA", help=f"{_DATA_HELP}; default: the run's")
    evaluate.add_argument("--skip-bad-images", action="store_true", help="leave out broken files")

    export = add(
        "export",
        _export,
        "convert a trained network, verify it and write a bundle",
        "runs/digits --scheme int8 --out digits-int8",
    )
    export.add_argument("model", metavar="RUN", help="run directory, or .keras file of ours")
    export.add_argument("--out", required=True, metavar="BUNDLE", help="directory to write")
    export.add_argument(
        "--scheme", default="int8", help="float32, float16, dynamic_int8, int8 (default)"
    )
    export.add_argument(
        "--calibration",
        metavar="DATA",
        help="source of the calibration images, from its training split; default: the run's data",
    )
    export.add_argument(
        "--evaluation",
        metavar="DATA",
        help="source to compare the accuracy on, by its test split; none: golden images only; "
        "default: the run's data",
    )
    export.add_argument("--skip-bad-images", action="store_true", help="leave out broken files")
    export.add_argument(
        "--max-drop",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="largest loss of accuracy before the export is rejected; default: 0.01",
    )
    export.add_argument("--force", action="store_true", help="replace the bundle that is there")

    verify = add("verify", _verify, "check a bundle against its golden vectors", "digits-int8")
    verify.add_argument("bundle", metavar="BUNDLE")

    classify = add("classify", _classify, "name what images show", "digits-int8 seven.png --top 3")
    classify.add_argument("bundle", metavar="BUNDLE")
    classify.add_argument("images", nargs="+", metavar="IMAGE")
    classify.add_argument("--top", type=_positive, default=3, help="classes to show; default: 3")
    classify.add_argument("--threads", type=_positive, help="of the CPU; default: LiteRT's choice")

    listing = add("list", _list, "print the networks", "'resnet5*'")
    listing.add_argument("pattern", nargs="?", default="*", help="e.g. 'resnet*'")

    info = add("info", _info, "print a network stage by stage", "resnet50 --input-size 224")
    info.add_argument("name", help="see keras-resnet list")
    info.add_argument("--input-size", type=_positive, metavar="N", help="pixels; default: its own")
    info.add_argument("--classes", type=_positive, metavar="N", help="default: its own")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer: {text}")
    return int(text)


def _train(options: argparse.Namespace) -> int:
    # What can be wrong is checked in the order of its cost: names, then files, then the network.
    row = architecture.get_architecture(options.model)
    import_tensorflow()
    from keras_resnet import data, training

    recipe = training.get_recipe(options.recipe).replace(options.set)
    source = data.load(options.data, skip_bad_images=options.skip_bad_images, seed=options.seed)
    if not options.json:
        print(
            f"{options.model} on {source.name}: {source.train.examples} images to train, "
            f"{source.test.examples} to test, {len(source.class_names)} classes"
        )
        _print_bad_images(source)
    size = options.input_size or row.input_size

    def build() -> Any:
        from keras_resnet.models import create_model

        return create_model(
            row,
            input_shape=(size, size, 3),
            classes=len(source.class_names),
            class_names=source.class_names,
        )

    result = training.fit(
        build,
        source,
        recipe,
        strategy=options.strategy,
        run_dir=options.out,
        seed=options.seed,
        verbose=not options.json,
        force=options.force,
    )
    if options.json:
        print(json.dumps({"run": options.out, **result.history[-1]}))
    else:
        last = result.history[-1]
        print(f"test accuracy {last['val_accuracy']:.2%}; the run is in {options.out}")
    return 0


def _print_bad_images(source: Any) -> None:
    if source.bad_images:
        print(f"left out {len(source.bad_images)} files that are no images:", file=sys.stderr)
        for path in source.bad_images:
            print(f"  {path}", file=sys.stderr)


def _load(path: str) -> tuple[Any, Any, Callable[[], Any] | None]:
    """Model, preprocessing and a function that loads the run's data, if it is a run."""
    from keras_resnet import training
    from keras_resnet.models import load_model
    from keras_resnet.preprocessing import Preprocessing

    if Path(path).is_dir():
        run = training.load_run(path)
        return run.model, run.preprocessing, run.load_data
    model = load_model(path)
    return model, Preprocessing.from_model(model), None


def _evaluate(options: argparse.Namespace) -> int:
    import_tensorflow()
    from keras_resnet import data, training

    model, preprocessing, load_data = _load(options.model)
    if options.data:
        source = data.load(options.data, skip_bad_images=options.skip_bad_images)
    elif load_data:
        source = load_data()
    else:
        return _fail("a .keras file does not say what to measure on; give --data")
    _print_bad_images(source)
    result = training.evaluate(model, source, preprocessing=preprocessing)
    if options.json:
        print(json.dumps({"data": source.name, **vars(result)}))
    else:
        print(
            f"{result.correct} of {result.examples} test images of {source.name} right: accuracy "
            f"{result.accuracy:.2%}, loss {result.loss:.4f}"
        )
    return 0


def _export(options: argparse.Namespace) -> int:
    from keras_resnet.export.schemes import get_scheme
    from keras_resnet.files import refuse_existing

    scheme = get_scheme(options.scheme)
    refuse_existing(options.out, options.force)
    import_tensorflow()
    from keras_resnet import data, export

    model, preprocessing, load_data = _load(options.model)
    needs_calibration = scheme.activations == "int8"
    if needs_calibration and not options.calibration and load_data is None:
        return _fail("a .keras file does not say what to calibrate with; give --calibration")
    calibration = evaluation = None
    wants_own = options.evaluation is None or (needs_calibration and not options.calibration)
    if load_data is not None and wants_own:
        calibration = evaluation = load_data()
    if options.calibration and needs_calibration:
        calibration = data.load(options.calibration, skip_bad_images=options.skip_bad_images)
    if options.evaluation == "none":
        evaluation = None
    elif options.evaluation:
        evaluation = data.load(options.evaluation, skip_bad_images=options.skip_bad_images)
    try:
        bundle = export.to_tflite(
            model,
            options.out,
            options.scheme,
            calibration=calibration,
            evaluation=evaluation,
            preprocessing=preprocessing,
            max_drop=options.max_drop,
            force=options.force,
        )
    except export.ExportRejected as rejection:
        if options.json:
            print(json.dumps(rejection.report.to_dict()))
        else:
            print(rejection.report)
        return _fail(f"rejected, nothing was written: {rejection}")
    if options.json:
        print(json.dumps({"bundle": options.out, **bundle.manifest["verification"]}))
    else:
        size = bundle.model_path.stat().st_size
        print(export.Verification.from_dict(bundle.manifest["verification"]))
        print(f"{options.out}: {size:,} bytes")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from keras_resnet.export.verification import verify

    with held_back_stderr():
        report = verify(options.bundle)
    print(json.dumps(report.to_dict()) if options.json else report)
    return 0 if report.passed else EXIT_FAILED


def _classify(options: argparse.Namespace) -> int:
    from keras_resnet.export.runtime import Classifier

    with held_back_stderr():
        classifier = Classifier(options.bundle, threads=options.threads)
    status = 0
    for image in options.images:
        try:
            ranking = classifier(image, top=options.top)
        except (ValueError, OSError) as error:
            status = _fail(str(error))  # the other images are still wanted
            continue
        if options.json:
            classes = [{"label": label, "probability": p} for label, p in ranking]
            print(json.dumps({"image": image, "classes": classes}, ensure_ascii=False))
        else:
            print(f"{image}: " + ", ".join(f"{label} {p:.1%}" for label, p in ranking))
    return status


def _list(options: argparse.Namespace) -> int:
    from keras_resnet.weights.catalog import public_weights

    names = architecture.list_models(options.pattern)
    builders = {name: builder for builder, name in architecture.BUILDERS.items()}
    rows = [(architecture.get_architecture(n), architecture.get_counts(n)) for n in names]
    if options.json:
        described = [
            {
                "builder": builders[row.name],
                **row.to_dict(),
                **vars(counts),
                "gmacs": counts.multiply_adds / 1e9,
                "weights": public_weights(row.name),
            }
            for row, counts in rows
        ]
        print(json.dumps(described))
        return 0
    if not rows:
        return _fail(f"no network matches {options.pattern!r}")
    _print_table(
        ("name", "builder", "parameters", "GMACs", "input", "classes", "weights", "source"),
        [
            (
                row.name,
                builders[row.name],
                f"{counts.parameters:,}",
                counts.gmacs,
                str(row.input_size),
                str(row.classes),
                str(len(public_weights(row.name)) or ""),
                row.source,
            )
            for row, counts in rows
        ],
        right=(2, 3, 4, 5, 6),
    )
    return 0


def _info(options: argparse.Namespace) -> int:
    row = architecture.get_architecture(options.name)
    import_tensorflow()
    from keras_resnet.counting import count
    from keras_resnet.models import create_model
    from keras_resnet.weights.catalog import public_weights

    size = options.input_size or row.input_size
    weights = public_weights(row.name)
    stages = count(create_model(row, input_shape=(size, size, 3), classes=options.classes))
    totals = {
        key: sum(getattr(stage, key) for stage in stages)
        for key in ("parameters", "statistics", "multiply_adds")
    }
    if options.json:
        description = {"architecture": row.to_dict(), "input_size": size, "weights": weights}
        print(json.dumps({**description, "stages": [vars(s) for s in stages], "total": totals}))
        return 0
    print(f"{row.name}, input {size} x {size} x 3: {row.source}")
    if weights:
        print(f"weights: {', '.join(weights)}")
    body = [
        (
            stage.stage,
            " x ".join(map(str, stage.output_shape)),
            f"{stage.parameters:,}",
            f"{stage.statistics:,}",
            f"{stage.multiply_adds:,}",
        )
        for stage in stages
    ]
    total = ("total", "", *(f"{value:,}" for value in totals.values()))
    header = ("stage", "output", "parameters", "BN statistics", "multiply-adds")
    _print_table(header, [*body, total], right=(2, 3, 4))
    return 0


def _print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
