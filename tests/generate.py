"""Writes what is made from the table of architectures; the tests compare it with what lies there.

    python tests/generate.py

`keras_resnet/__init__.pyi`: the builders' signatures, for editors. `keras_resnet/networks.json`:
what is counted on every built network, so that listing them needs no Keras. The table in
docs/networks.md, that of the recipes in docs/training.md, and docs/schemes.md.
"""

import inspect
import itertools
import json
import re
import sys
from pathlib import Path

import families
from toys import shapes_only

import keras_resnet
from keras_resnet import architecture, training
from keras_resnet.counting import count
from keras_resnet.weights.catalog import public_weights

ROOT = Path(__file__).parent.parent
STUB = ROOT / "keras_resnet" / "__init__.pyi"
COUNTS = ROOT / "keras_resnet" / "networks.json"
NETWORKS = ROOT / "docs" / "networks.md"
TRAINING = ROOT / "docs" / "training.md"
SCHEMES = ROOT / "docs" / "schemes.md"

STUB_HEAD = """\
# Made by tests/generate.py from the table of architectures.

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

"""


def stub() -> str:
    """The types of the public face."""
    homes = {n: h for n, h in keras_resnet._HOMES.items() if n not in architecture.BUILDERS}
    imports = {f"keras_resnet.{home}": [] for home in homes.values()}
    for name, home in homes.items():
        imports[f"keras_resnet.{home}"].append(name)
    imports["keras_resnet.architecture"].append("Shortcut")
    imports["keras_resnet.models"].append("ResidualNetwork")
    imports["keras_resnet"] = list(keras_resnet._SUBMODULES)
    lines = [STUB_HEAD]
    for module, names in sorted(imports.items()):
        lines += [f"from {module} import {name} as {name}\n" for name in sorted(names)]
    lines.append("\n__version__: str\n__all__: list[str]\n")
    for builder in architecture.BUILDERS:
        lines.append("\n" + _signature(builder))
    return "".join(lines)


def _signature(builder: str) -> str:
    function = getattr(keras_resnet, builder)
    lines, is_keyword = [f"def {builder}(\n"], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword:
            lines.append("    *,\n")
            is_keyword = True
        value = parameter.default
        default = json.dumps(value) if isinstance(value, str) else repr(value)
        annotation = parameter.annotation.replace("'", '"')
        lines.append(f"    {parameter.name}: {annotation} = {default},\n")
    summary = inspect.getdoc(function).splitlines()[0]
    return "".join([*lines, f') -> ResidualNetwork:\n    """{summary}"""\n'])


def counts_of(name: str) -> list[int]:
    """Parameters, statistics and multiply-adds of a built network."""
    stages = count(shapes_only(keras_resnet.create_model, name))
    keys = ("parameters", "statistics", "multiply_adds")
    return [sum(getattr(stage, key) for stage in stages) for key in keys]


def counts() -> str:
    rows = []
    for name in keras_resnet.list_models():
        rows.append(f"{json.dumps(name)}: {counts_of(name)}")
        print(rows[-1], file=sys.stderr)
    return "{\n" + ",\n".join(rows) + "\n}\n"


def table() -> str:
    """The table of networks."""
    lines = [
        "| name | builder | parameters | GMACs | input | source | public weights |\n",
        "|---|---|--:|--:|--:|---|---|\n",
    ]
    for builder, name in architecture.BUILDERS.items():
        row, size = architecture.get_architecture(name), architecture.get_counts(name)
        cells = (
            f"`{name}`",
            f"`{builder}`",
            f"{size.parameters:,}",
            size.gmacs,
            row.input_size,
            row.source,
            ", ".join(_weights(name)),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |\n")
    return "".join(lines)


def _weights(name: str) -> list[str]:
    """Repositories that differ in their training tag alone are one entry."""
    found = []
    for network, names in itertools.groupby(public_weights(name), lambda n: n.split(".")[0]):
        first, *others = names
        found.append(f"`{network}.*` ({1 + len(others)})" if others else f"`{first}`")
    return found


def with_table(page: str) -> str:
    """The page about networks with a current table."""
    return re.sub(r"^\| name \| builder .*?\n(?!\|)", lambda _: table(), page,
                  flags=re.DOTALL | re.MULTILINE)  # fmt: skip


def with_recipes(page: str) -> str:
    """The page about training with what the recipes say of themselves."""
    entries = [
        f"**`{name}`** — {recipe.source}.\n\n- Result: {recipe.result}.\n- `{recipe.command}`\n\n"
        for name, recipe in training.RECIPES.items()
    ]
    marks = r"(<!-- recipes: [^\n]*-->\n).*?(<!-- end of recipes -->)"
    return re.sub(
        marks, lambda found: found[1] + "".join(entries) + found[2], page, flags=re.DOTALL
    )


if __name__ == "__main__":
    COUNTS.write_text(counts(), encoding="utf-8")
    STUB.write_text(stub(), encoding="utf-8")
    architecture._all_counts.cache_clear()
    TRAINING.write_text(with_recipes(TRAINING.read_text(encoding="utf-8")), encoding="utf-8")
    NETWORKS.write_text(with_table(NETWORKS.read_text(encoding="utf-8")), encoding="utf-8")
    SCHEMES.write_text(families.page(), encoding="utf-8")
