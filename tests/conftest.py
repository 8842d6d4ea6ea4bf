"""What every test shares: property tests that try the same examples on every run, and servers."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
settings.load_profile("deterministic")


def _load(name):
    """A module beside this file; --import-mode=importlib leaves the directory off sys.path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load("servers")  # from here on, tests can import it by that name
_load("foreign")


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
