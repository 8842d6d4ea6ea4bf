"""The page that tells how an export was judged: `report.html`, whole in one file.

It holds no scripts and asks for nothing on the network, so that it can be mailed, archived and
opened anywhere. Names and labels are other people's text: all of it is escaped.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_resnet.export.clients import instructions
from keras_resnet.export.graph import read_graph
from keras_resnet.export.layers import LayerError
from keras_resnet.export.repair import Repair
from keras_resnet.export.verification import AccuracyComparison, Outcomes, Parity, Verification

# A larger confusion matrix cannot be read.
_MOST_CLASSES = 20
_WORST_CLASSES = 20
_WORST_LAYERS = 20
# What no layer of a network that quantizes well falls below; the full width of a bar.
_WIDEST_DB = 60.0


def render(
    verification: Verification,
    content: bytes,
    manifest: Mapping[str, Any],
    labels: Sequence[str] = (),
    outcomes: Outcomes | None = None,
) -> str:
    """The page as HTML; the same arguments give the same text.

    Args:
        verification: the verdict and its figures.
        content: the `.tflite` file, as it goes into the bundle.
        manifest: what is known of the export: `model`, `calibration`, `preprocessing`, `versions`
            and whatever else; what is missing is left out of the page.
        labels: class names; empty for a network that gives features.
        outcomes: what both networks made of every evaluation image.
    """
    title = f"{manifest.get('model', 'network')}, {verification.scheme}"
    sections = [
        _verdict(title, verification),
        _facts(verification, content, manifest, labels),
        _accuracy(verification.accuracy),
        _parity(verification.parity),
        _classes(outcomes, labels),
        _repair(verification.repair),
        _layers(verification.layers),
        _operators(content),
        _calibration(manifest.get("calibration")),
        _clients(verification, content, labels, manifest),
        _versions(manifest.get("versions")),
    ]
    return _PAGE.format(
        title=html.escape(title), style=_STYLE, body="\n".join(part for part in sections if part)
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """:root {
  color-scheme: light dark;
  --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --line: #d5dae0; --tint: #f3f5f8;
  --bar: #3b6ea8; --good: #1a7f37; --bad: #b42318; --warn: #8a5a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ed; --soft: #9aa4b0; --paper: #14171b; --line: #333a43; --tint: #1d2127;
    --bar: #6ea0dd; --good: #4cc26a; --bad: #ff7b72; --warn: #e0a93b;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .4rem 0; max-width: 45rem; }
.badge { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; color: var(--paper);
  font-weight: 600; }
.good { background: var(--good); } .bad { background: var(--bad); }
.problem { border-left: .3rem solid var(--bad); padding-left: .7rem; }
.warning { border-left: .3rem solid var(--warn); padding-left: .7rem; }
.soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th { font-weight: 600; }
th.text, td.text { text-align: left; max-width: min(24rem, 55vw);
  overflow-wrap: break-word; }
td.bar { width: 10rem; min-width: 6rem; text-align: left; }
td.bar span { display: block; height: .8rem; margin-top: .35rem; background: var(--bar);
  border-radius: .15rem; min-width: 1px; }
table.confusion td, table.confusion th { padding: .15rem .4rem; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: .3rem;
  padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; line-height: 1.4; }
svg { display: block; width: 100%; max-width: 28rem; height: auto; margin: .6rem 0; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }"""


def _verdict(title: str, verification: Verification) -> str:
    word, kind = ("passed", "good") if verification.passed else ("rejected", "bad")
    return "\n".join(
        [
            f"<h1>{html.escape(title)}</h1>",
            f'<p><span class="badge {kind}">{word}</span></p>',
            *(f'<p class="problem">{html.escape(text)}</p>' for text in verification.problems),
            *(f'<p class="warning">{html.escape(text)}</p>' for text in verification.warnings),
        ]
    )


def _facts(
    verification: Verification,
    content: bytes,
    manifest: Mapping[str, Any],
    labels: Sequence[str],
) -> str:
    graph = read_graph(content)
    described = [
        ", ".join(
            f"{graph.tensors[i].dtype} {_shape(graph.tensors[i].shape)} {graph.tensors[i].name}"
            for i in numbers
        )
        for numbers in (graph.inputs, graph.outputs)
    ]
    rows = [
        ("model", manifest.get("model")),
        ("scheme", verification.scheme),
        ("input", f"{described[0]}: {_pixels(graph.tensors[graph.inputs[0]].dtype)}"),
        ("output", described[1]),
        ("classes", len(labels) or None),
        ("size", f"{len(content):,} bytes, {_gzipped(content):,} gzipped"),
    ]
    return _section("The file", _table(None, [row for row in rows if row[1] is not None], text=2))


def _pixels(dtype: str) -> str:
    return f"raw pixels 0 to 255{', less 128' if dtype == 'int8' else ''}"


def _shape(shape: Iterable[int]) -> str:
    return " × ".join("?" if size < 0 else str(size) for size in shape)


def _gzipped(content: bytes) -> int:
    return len(gzip.compress(content, compresslevel=9, mtime=0))


def _accuracy(accuracy: AccuracyComparison | None) -> str:
    if accuracy is None:
        return _section(
            "Accuracy", _text("No evaluation images were given: accuracy was not compared.")
        )
    both = accuracy.source_correct - accuracy.only_source_correct
    counted = accuracy.only_source_correct + accuracy.only_exported_correct + both
    rows = [
        ("right in the source model", accuracy.source_correct, f"{accuracy.source_accuracy:.2%}"),
        ("right in the file", accuracy.exported_correct, f"{accuracy.exported_accuracy:.2%}"),
        ("right in both", both, f"{both / accuracy.examples:.2%}"),
        ("right in the source model alone", accuracy.only_source_correct, ""),
        ("right in the file alone", accuracy.only_exported_correct, ""),
        ("wrong in both", accuracy.examples - counted, ""),
    ]
    low, high = accuracy.interval
    return _section(
        "Accuracy",
        _table(("evaluation images", f"of {accuracy.examples:,}", ""), rows),
        _text(
            f"The accuracy drops by {accuracy.drop:.2%} of the images, with a 95% confidence "
            f"interval from {low:.2%} to {high:.2%} (Tango's score interval for paired "
            f"proportions); at most {accuracy.max_drop:.2%} was allowed."
        ),
        _interval(accuracy),
        _text(_mcnemar(accuracy)),
    )


def _mcnemar(accuracy: AccuracyComparison) -> str:
    only_source, only_exported = accuracy.only_source_correct, accuracy.only_exported_correct
    if not only_source + only_exported:
        return "No image is right in only one of the two."
    return (
        f"McNemar's exact test: p = {accuracy.p_value:.2g}, the share of equally good pairs of "
        "networks that split the images which only one of the two gets right as unevenly as "
        f"{only_source} to {only_exported}, or more."
    )


def _interval(accuracy: AccuracyComparison) -> str:
    """The drop and its interval on a line, with the limit."""
    low, high = accuracy.interval
    ends = min(low, 0.0), max(high, accuracy.max_drop)
    margin = 0.08 * (ends[1] - ends[0])

    def x(drop: float) -> str:
        share = (drop - ends[0] + margin) / (ends[1] - ends[0] + 2 * margin)
        return f"{10 + 380 * share:.1f}"

    return f"""<svg viewBox="0 0 400 80" role="img" aria-label="the drop, its interval, the limit">
<line x1="10" x2="390" y1="40" y2="40" stroke="var(--line)"/>
<line x1="{x(0)}" x2="{x(0)}" y1="28" y2="52" stroke="var(--soft)"/>
<text x="{x(0)}" y="66" text-anchor="middle">0</text>
<line x1="{x(low)}" x2="{x(high)}" y1="40" y2="40" stroke="var(--bar)" stroke-width="6"/>
<circle cx="{x(accuracy.drop)}" cy="40" r="6" fill="var(--bar)"/>
<line x1="{x(accuracy.max_drop)}" x2="{x(accuracy.max_drop)}" y1="20" y2="60" stroke="var(--bad)" \
stroke-width="2"/>
<text x="{x(accuracy.max_drop)}" y="14" text-anchor="middle">limit {accuracy.max_drop:.2%}</text>
</svg>"""


def _parity(parity: Parity) -> str:
    rows = [
        ("images", parity.images),
        ("top-1 agreement", _shown(parity.top1_agreement, ".1%")),
        ("largest difference", _shown(parity.max_difference, ".3g")),
        ("mean difference", _shown(parity.mean_difference, ".3g")),
        ("mean total variation", _shown(parity.total_variation, ".3g")),
        ("relative error", _shown(parity.relative_error, ".3g")),
    ]
    return _section(
        "Golden images",
        _text(
            "The outputs of the source model, reloaded from disk, and of the file, for the images "
            "that the bundle carries. keras-resnet verify repeats this on any machine."
        ),
        _table(None, [row for row in rows if row[1] is not None]),
    )


def _shown(value: float | None, format_spec: str) -> str | None:
    return None if value is None else format(value, format_spec)


def _classes(outcomes: Outcomes | None, labels: Sequence[str]) -> str:
    if outcomes is None or not labels:
        return ""
    parts = [_change_by_class(outcomes, labels)]
    if len(labels) <= _MOST_CLASSES:
        parts.append(_confusion(outcomes.confusion(len(labels)), labels))
    return "\n".join(parts)


def _change_by_class(outcomes: Outcomes, labels: Sequence[str]) -> str:
    counts, before, after = (
        np.bincount(chosen, minlength=len(labels))
        for chosen in (
            outcomes.labels,
            outcomes.labels[outcomes.source == outcomes.labels],
            outcomes.labels[outcomes.exported == outcomes.labels],
        )
    )
    # By the loss, then by the share that is right.
    order = np.lexsort((after / np.maximum(counts, 1), after - before))
    rows = [
        (labels[i], counts[i], before[i], after[i], f"{after[i] - before[i]:+d}")
        for i in order
        if counts[i]
    ]
    return _section(
        "Classes, those that lose most first",
        _table(("class", "images", "right before", "right after", "change"), rows[:_WORST_CLASSES]),
    )


def _confusion(matrix: np.ndarray, labels: Sequence[str]) -> str:
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares = np.round(100 * matrix / totals).astype(int)

    def cell(row: int, column: int) -> str:
        share = shares[row, column]
        color = "--good" if row == column else "--bad"
        shade = f"background: color-mix(in srgb, var({color}) {share // 2 + 5 * (share > 0)}%, "
        return f'<td style="{shade}transparent)">{matrix[row, column] or ""}</td>'

    head = "".join(f"<th>{html.escape(label)}</th>" for label in labels)
    rows = "\n".join(
        f'<tr><th class="text">{html.escape(label)}</th>'
        + "".join(cell(row, column) for column in range(len(labels)))
        + "</tr>"
        for row, label in enumerate(labels)
    )
    return _section(
        "Confusion matrix",
        _text("True classes down, the classes that the file names across; counts of images."),
        f'<div class="scroll"><table class="confusion">\n<tr><th></th>{head}</tr>\n{rows}\n'
        "</table></div>",
    )


def _repair(repair: Repair | None) -> str:
    if repair is None:
        return ""
    # Without the time that it takes here: the same export has to give the same page.
    return _section("Repair", _text(str(dataclasses.replace(repair, slowdown=None))))


def _layers(errors: Sequence[LayerError]) -> str:
    if not errors:
        return ""
    return _section(
        "Layers, the worst first",
        _text(
            "Signal-to-quantization-noise ratio in decibels: of the layer alone, fed with exact "
            "values (the mean over its channels; the bar), and of all noise gathered up to its "
            "output. Saturated: values beyond the range that the tensor can hold."
        ),
        _layer_table(errors[:_WORST_LAYERS]),
        _folded(f"the other {len(errors) - _WORST_LAYERS}", _layer_table(errors[_WORST_LAYERS:]))
        if len(errors) > _WORST_LAYERS
        else "",
    )


def _layer_table(errors: Sequence[LayerError]) -> str:
    rows = [
        (
            error.layer,
            error.operator,
            _Bar(error.own_sqnr_db / _WIDEST_DB),
            f"{error.own_sqnr_db:.1f}",
            f"{error.sqnr_db:.1f}",
            f"{error.saturation:.2%}",
        )
        for error in errors
    ]
    return _table(("layer", "operator", "", "own", "gathered", "saturated"), rows, text=2)


def _operators(content: bytes) -> str:
    counts = collections.Counter(operator.name for operator in read_graph(content).operators)
    most = max(counts.values(), default=1)
    rows = [(name, _Bar(count / most), count) for name, count in counts.most_common()]
    return _section("Operators", _table(None, rows))


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    if not calibration:
        return ""
    rows = [(name, _plain(value)) for name, value in calibration.items() if value is not None]
    return _section("Calibration", _table(None, rows, text=2))


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _clients(
    verification: Verification, content: bytes, labels: Sequence[str], manifest: Mapping[str, Any]
) -> str:
    if not verification.passed or not labels:
        return ""
    parts = [
        f"<h3>{html.escape(how.platform)}</h3>"
        + (f"<p>{html.escape(how.remark)}</p>" if how.remark else "")
        + (f"<pre><code>{html.escape(how.code)}</code></pre>" if how.code else "")
        for how in instructions(content, manifest.get("preprocessing"))
    ]
    return _section("How to run it", *parts)


def _versions(versions: Mapping[str, Any] | None) -> str:
    if not versions:
        return ""
    return _section("Made with", _table(None, sorted(versions.items()), text=2))


class _Bar:
    """A cell that shows a share as a bar."""

    def __init__(self, share: float):
        self.percent = round(100 * min(max(share, 0.0), 1.0))


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"<h2>{html.escape(title)}</h2>", *(part for part in parts if part)])


def _text(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>\n{body}\n</details>"


def _table(head: Sequence[str] | None, rows: Iterable[Sequence[Any]], text: int = 1) -> str:
    """A table whose first `text` columns are text and whose others are numbers."""

    def cell(tag: str, column: int, value: Any) -> str:
        if isinstance(value, _Bar):
            return f'<td class="bar"><span style="width: {value.percent}%"></span></td>'
        kind = ' class="text"' if column < text else ""
        return f"<{tag}{kind}>{html.escape(str(value))}</{tag}>"

    lines = [] if head is None else [("th", head)]
    lines += [("td", row) for row in rows]
    body = "\n".join(
        f"<tr>{''.join(cell(tag, column, value) for column, value in enumerate(row))}</tr>"
        for tag, row in lines
    )
    return f'<div class="scroll"><table>\n{body}\n</table></div>'
