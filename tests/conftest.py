"""What every test shares: property tests that try the same examples on every run, and servers."""

import pytest
import servers
from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
settings.load_profile("deterministic")


# Files that take long are begun first: else one of two processes ends with them, alone.
LONG = ("test_survival.py", "test_strategies.py", "test_launch.py", "test_models.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def file_server():
    """A web server on this machine that serves what the test puts into its `files`."""
    with servers.FileServer() as server:
        yield server


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A Hugging Face hub on this machine, which huggingface_hub takes for the real one.

    Repositories are the directories OWNER/NAME under its `root`; the cache is an empty one, `cache`
    in the test's directory.
    """
    with servers.FakeHub(tmp_path / "hub") as hub:
        hub.root.mkdir()
        hub.use(monkeypatch, tmp_path / "hf" / "hub")
        yield hub
