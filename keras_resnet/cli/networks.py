"""Subcommands that describe the networks."""

from __future__ import annotations

import argparse
import json

from keras_resnet import architecture
from keras_resnet.cli.common import Add, fail, positive
from keras_resnet.cli.environment import environment, table
from keras_resnet.quiet import import_tensorflow
from keras_resnet.tables import columns


def add_commands(add: Add) -> None:
    """Adds list and info."""
    listing = add("list", _list, "print the networks", "'resnet5*'")
    listing.add_argument("pattern", nargs="?", default="*", help="e.g. 'resnet*'")

    info = add(
        "info",
        _info,
        "print a network stage by stage; without a name, what is installed here",
        "resnet50 --input-size 224",
    )
    info.add_argument("name", nargs="?", help="see keras-resnet list")
    info.add_argument("--input-size", type=positive, metavar="N", help="pixels; default: its own")
    info.add_argument("--classes", type=positive, metavar="N", help="default: its own")


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
        return fail(f"no network matches {options.pattern!r}")
    body = columns(
        [
            ("name", "builder", "parameters", "GMACs", "input", "classes", "weights", "source"),
            *(
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
            ),
        ],
        left=(0, 1, 7),
    )
    print("\n".join(body))
    return 0


def _info(options: argparse.Namespace) -> int:
    if options.name is None:
        found = environment()
        print(json.dumps(found) if options.json else table(found))
        return 0
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
    print("\n".join(columns([header, *body, total], left=(0, 1))))
    return 0
