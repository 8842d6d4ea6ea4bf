"""What docs/results.md says of a training is what the training's history says."""

import csv
import json
import re
import shlex
import statistics
from pathlib import Path

import pytest

from keras_resnet import cli, training
from keras_resnet.weights import catalog

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
EXAMPLES = {"coded": 46_000, "digits": 1_442}  # to train on
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if "[csv](" in line
]
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)[1:]
    for line in block.splitlines()
]


@pytest.mark.parametrize(("row", "command"), list(zip(ROWS, COMMANDS, strict=True)))
def test_a_row_tells_what_the_history_and_the_command_say(row, command):
    network, data, recipe, epochs, seed, _, hours, accuracy, _, link = row
    accuracies, seconds = [], 0.0
    for path in re.findall(r"\[csv\]\((.*?)\)", link):
        with (DOCS / path).open(newline="") as file:
            history = list(csv.DictReader(file))
        assert int(history[-1]["epoch"]) == len(history) == int(epochs)
        accuracies.append(100 * float(history[-1]["val_accuracy"]))
        examples = EXAMPLES[data.split(",")[0]]
        seconds += sum(examples / float(each["images_per_second"]) for each in history)
    assert len(accuracies) == len(seed.split(", "))
    mean = f"{statistics.fmean(accuracies):.2f} %"
    spread = f" ({min(accuracies):.2f} to {max(accuracies):.2f})" if len(accuracies) > 1 else ""
    assert accuracy == mean + spread
    assert f"{seconds / 3600:.2f}" == hours
    # And the command is of that network, that recipe and that seed.
    told = " ".join(command)
    assert network.strip("`") in command
    recipe = recipe.split(",")[0].strip("`")
    assert recipe in command
    assert f"epochs={epochs}" in told or training.RECIPES[recipe].epochs == int(epochs)
    given = re.findall(r"for seed in ([\d ]+);|--seed (\d+)", told) or [("", "0")]
    assert seed.replace(",", "") in given[0]


def test_the_comparison_of_what_ships_is_that_of_the_histories_and_the_model_card():
    rows = re.findall(
        r"^\| `(\w+)`, .*?(\d+) epochs \| ([\d.]+) % \| [\d.]+ % \| ([\d.]+) % \| ([\d.]+) % \|$",
        PAGE,
        flags=re.MULTILINE,
    )
    histories = ("resnet20-again", "resnet56", "resnet56-deeper", "resnet56-distilled")
    card = (Path(catalog.__file__).parent / "cifar10" / "README.md").read_text(encoding="utf-8")
    shipped = dict.fromkeys(("resnet20", "resnet56"))
    for (name, epochs, error, report, coded), history in zip(rows, histories, strict=True):
        accuracies = column(f"results/{history}-history.csv")
        assert error == f"{100 - 100 * accuracies[-1]:.2f}"
        assert int(epochs) == len(accuracies) + (30 if history == "resnet20-again" else 0)
        if shipped.get(name) is None:  # the first of a name is the one that ships
            shipped[name] = re.search(rf"^\| `{name}` \|.*", card, flags=re.MULTILINE)[0]
            assert f" {coded} % |" in shipped[name]
            assert f" {report} % |" in shipped[name]


def test_what_was_not_run_has_a_command_that_would():
    commands = re.findall(r"\*not run\*: `keras-resnet (.*?)`", PAGE)
    assert len(commands) >= 3
    for command in commands:
        assert cli.make_parser().parse_args(shlex.split(command)).command == "train"


def column(path, *key, index=2):
    """The floating-point figures of a column, of the rows that begin so."""
    with (DOCS / path).open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [float(row[index]) for row in rows if row[: len(key)] == list(key)]


def test_the_gradients_that_are_told_are_those_that_were_noted():
    page = (DOCS / "residual_learning.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", page, flags=re.MULTILINE
    )
    assert len(rows) == 4
    for name, *told in rows:
        norms = column(f"degradation/{name.lower().replace('-', '')}-gradients.csv", "0")
        first, last = statistics.fmean(norms[1:6]), statistics.fmean(norms[-5:])
        for text, value in zip(told, (first, last, first / last), strict=True):
            assert float(text) == pytest.approx(value, rel=0.02)


def test_the_layer_responses_that_are_told_are_those_that_were_measured():
    page = (DOCS / "residual_learning.md").read_text(encoding="utf-8")
    (told,) = re.findall(
        r"([\d.]+) in plain-20, ([\d.]+) in ResNet-20 and ([\d.]+) in ResNet-56", page
    )
    (later,) = re.findall(
        r"plain-20 is at ([\d.]+), ResNet-20 at ([\d.]+) and ResNet-56,.*?\sat ([\d.]+)\.\n",
        page,
        re.DOTALL,
    )
    for figures, path in ((told, "layer_responses.csv"), (later, "ten/layer_responses.csv")):
        for text, name in zip(figures, ("plain20", "resnet20", "resnet56"), strict=True):
            values = column(f"residual_learning/{path}", name)
            assert text == f"{statistics.fmean(values):.2f}"


def test_the_growth_of_kernels_that_is_told_is_that_which_was_measured():
    page = (DOCS / "residual_learning.md").read_text(encoding="utf-8")
    (told,) = re.findall(
        r"has (\d+) times the norm of its initialization, the next one (\d+) times, the tenth\s"
        r"still (\d+) times; no kernel of ResNet-56 has more than ([\d.]+) times",
        page,
    )
    plain = column("residual_learning/ten/layer_responses.csv", "plain56", index=3)
    residual = column("residual_learning/ten/layer_responses.csv", "resnet56", index=3)
    assert told == (f"{plain[0]:.0f}", f"{plain[1]:.0f}", f"{plain[9]:.0f}", f"{max(residual):.1f}")


def test_the_errors_that_are_told_are_those_of_the_histories():
    page = (DOCS / "degradation.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| [\w, -]+ \| ([\d.]+) % \| ([\d.]+) % \|.* \[csv\]\((.*?)\) \|$", page, re.MULTILINE
    )
    assert len(rows) == 21
    for training_error, test_error, path in rows:
        with (DOCS / path).open(newline="") as file:
            *_, last = csv.DictReader(file)
        assert training_error == f"{100 - 100 * float(last['accuracy']):.2f}"
        assert test_error == f"{100 - 100 * float(last['val_accuracy']):.2f}"


def test_the_gain_of_warmup_that_is_told_is_that_of_the_histories():
    page = (DOCS / "degradation.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| [\w-]+ \| 3 epochs \| ([\d.]+) % \| ([\d.]+) % \| \[csv\]\((.*?)\) \|$",
        page,
        re.MULTILINE,
    )
    assert len(rows) == 2
    for *told, path in rows:
        for error, name in zip(told, (path.replace("/warm/", "/ten/"), path), strict=True):
            with (DOCS / name).open(newline="") as file:
                third = list(csv.DictReader(file))[2]
            assert error == f"{100 - 100 * float(third['accuracy']):.2f}"
    page = (DOCS / "residual_learning.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"ratio of plain-56 is ([\d.]+)\safter it instead of ([\d.]+) ", page)
    for ratio, name in zip(told, ("warm", "ten"), strict=True):
        norms = column(f"degradation/{name}/plain56-gradients.csv", "1")
        measured = statistics.fmean(norms[1:6]) / statistics.fmean(norms[-5:])
        assert ratio == f"{measured:.2f}"


def test_the_epoch_in_which_the_deeper_network_passes_is_told_as_it_was():
    page = (DOCS / "degradation.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"passes that of ResNet-20 in epoch (\d+)", page)
    accuracies = [
        column(f"degradation/{name}-history.csv", index=2) for name in ("resnet20", "resnet56")
    ]
    ahead = [deeper > other for other, deeper in zip(*accuracies, strict=True)]
    assert ahead.index(True) + 1 == int(told)
    assert all(ahead[int(told) - 1 :])


def test_the_starts_of_the_depths_are_told_as_they_were():
    page = (DOCS / "degradation.md").read_text(encoding="utf-8")
    (norms,) = re.findall(
        r"are ([\d.]+) in ResNet-20, ([\d.]+) in ResNet-32, ([\d.]+) in ResNet-44 and "
        r"([\d.]+) in ResNet-56",
        page,
    )
    (accuracies,) = re.findall(r"they name (\d+), (\d+), (\d+) and (\d+) %", page)
    depths = (20, 32, 44, 56)
    for norm, accuracy, depth in zip(norms, accuracies, depths, strict=True):
        first = column(f"degradation/ten/resnet{depth}-gradients.csv", "0")[1:6]
        assert norm == f"{statistics.fmean(first):.2f}"
        (named,) = column(f"degradation/ten/resnet{depth}-history.csv", "1")
        assert accuracy == f"{100 * named:.0f}"


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_the_pictures_to_choose_by_are_told_as_measured(name):
    files = json.loads((DOCS / f"choosing/{name}.json").read_text(encoding="utf-8"))["measurements"]
    assert (DOCS / f"choosing/{name}.png").is_file()
    by = {(each["network"], each["scheme"]): each for each in files}
    networks = {network for network, _ in by}
    page = (DOCS / "networks.md").read_text(encoding="utf-8")
    speedups = [by[n, "float32"]["p50_ms"] / by[n, "int8"]["p50_ms"] for n in networks]
    (told,) = re.findall(rf"\({name}: int8 is\s([\d.]+ to [\d.]+) times", page)
    assert told == f"{min(speedups):.1f} to {max(speedups):.1f}"
    sizes = [by[n, "float32"]["file_bytes"] / by[n, "int8"]["file_bytes"] for n in networks]
    assert 3 < min(sizes) <= max(sizes) < 4
    if name == "cifar10":
        assert networks == set(catalog.CIFAR10_FILES)
        for each in files:
            assert 0.84 < each["accuracy"] < 0.90
