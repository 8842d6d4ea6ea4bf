"""What the comparisons share; a framework is imported where it is used, not by every process."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _no_start_values(monkeypatch):
    """Networks here get a peer's weights: drawing values for them first takes a while."""
    from keras_resnet import layers

    monkeypatch.setattr(
        layers.FanOutNormal, "__call__", lambda _, shape, dtype=None: np.zeros(shape, "f")
    )


@pytest.fixture
def assert_same(record_property):
    """Compares a network's outputs, by name, with its peer's; the figure goes into the summary."""
    import peers

    def compare(ours, theirs):
        difference = peers.largest_difference(ours, theirs)
        record_property("difference", difference)
        assert difference <= peers.TOLERANCE

    return compare


def pytest_terminal_summary(terminalreporter):
    found = defaultdict(list)
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "difference":
                file, _, test = report.nodeid.partition("::")
                found[Path(file).stem.removeprefix("test_")].append((value, test))
    for peer, values in sorted(found.items()):
        largest, test = max(values)
        terminalreporter.write_line(
            f"{peer}: {len(values)} comparisons, largest difference {largest:.1e} ({test})"
        )
