"""What the pages tell a reader to type is there: commands, options, names, programs, targets."""

import re
import shlex
from pathlib import Path

import pytest

from keras_resnet import architecture, cli, export, training

ROOT = Path(__file__).parent.parent
NOT_OURS = {"node_modules", "api"}
PAGES = sorted(
    path
    for place in (".", "docs", "examples", "benchmarks", "keras_resnet", "export")
    for pattern in (("*.md",) if place == "." else ("**/*.md", "**/*.py"))
    for path in (ROOT / place).glob(pattern)
    if not NOT_OURS & set(path.relative_to(ROOT).parts)
)
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
# Where a shell ends a command, and what stands for something that the reader knows.
ENDS = re.compile(r"[|>;&]+")


def lines_of(page):
    """Of blocks; a line that a backslash continues is one."""
    text = re.sub(r"\\+\n\s*", " ", page.read_text(encoding="utf-8"))
    return [line.strip().removeprefix("$ ") for line in text.splitlines()]


def words_of(line):
    words = shlex.split(line, comments=True)
    ends = [number for number, word in enumerate(words) if ENDS.fullmatch(word)]
    return words[1 : ends[0]] if ends else words[1:]


def commands_of(page):
    return [words_of(line) for line in lines_of(page) if line.startswith("keras-resnet ")]


def mentions_of(page):
    """Of the text, where a command may be named in part."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"(?<!`)`keras-resnet\s+([a-z][^`]*)`", text)
    return [mention.split() for mention in found if "%" not in mention and "{" not in mention]


def having(find):
    """The pages on which there is something to find."""
    pages = [page for page in PAGES if find(page)]
    return pytest.mark.parametrize("page", pages, ids=lambda p: str(p.relative_to(ROOT)))


@having(commands_of)
def test_every_command_line_is_understood(page):
    for words in commands_of(page):
        options = cli.make_parser().parse_args(words)  # else SystemExit, and argparse says why
        if getattr(options, "model", None) and options.command in ("train", "preview"):
            assert options.model in architecture.list_models(), words
        if getattr(options, "recipe", None):
            training.get_recipe(options.recipe).replace(options.set)
        if getattr(options, "scheme", None):
            assert options.scheme in export.SCHEMES, words


@having(mentions_of)
def test_what_the_text_says_of_the_command_is_in_its_help(page, capsys):
    for command, *words in mentions_of(page):
        with pytest.raises(SystemExit, match="0"):
            cli.make_parser().parse_args([command, "--help"])
        known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        assert set(re.findall(r"--[\w-]+", " ".join(words))) <= known


@having(lambda page: re.search(r"python (examples|benchmarks|tests)/", page.read_text()))
def test_every_program_is_there(page):
    for path in re.findall(r"python ((?:examples|benchmarks|tests)/\S+\.py)", page.read_text()):
        assert (ROOT / path).is_file(), path


@having(lambda page: page.suffix == ".md" and re.search(r"\bmake \w", page.read_text()))
def test_every_target_of_make_is_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`make ([\w-]+)[^`]*`", text)
    named += [line.split()[1] for line in lines_of(page) if re.match(r"make \w+( +#|$)", line)]
    assert set(named) <= TARGETS
