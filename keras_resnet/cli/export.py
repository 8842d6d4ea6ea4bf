"""Subcommands that make bundles, check them and run them."""

from __future__ import annotations

import argparse
import json

from keras_resnet.cli.common import EXIT_FAILED, Add, fail, load, positive
from keras_resnet.quiet import held_back_stderr, import_tensorflow


def add_commands(add: Add) -> None:
    """Adds export, verify and classify."""
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
    classify.add_argument("--top", type=positive, default=3, help="classes to show; default: 3")
    classify.add_argument("--threads", type=positive, help="of the CPU; default: LiteRT's choice")


def _export(options: argparse.Namespace) -> int:
    from keras_resnet.export.schemes import get_scheme
    from keras_resnet.files import refuse_existing

    scheme = get_scheme(options.scheme)
    refuse_existing(options.out, options.force)
    import_tensorflow()
    from keras_resnet import data, export

    model, preprocessing, load_data = load(options.model)
    needs_calibration = scheme.activations == "int8"
    if needs_calibration and not options.calibration and load_data is None:
        return fail("a .keras file does not say what to calibrate with; give --calibration")
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
        return fail(f"rejected, nothing was written: {rejection}")
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
            status = fail(str(error))  # the other images are still wanted
            continue
        if options.json:
            classes = [{"label": label, "probability": p} for label, p in ranking]
            print(json.dumps({"image": image, "classes": classes}, ensure_ascii=False))
        else:
            print(f"{image}: " + ", ".join(f"{label} {p:.1%}" for label, p in ranking))
    return status
