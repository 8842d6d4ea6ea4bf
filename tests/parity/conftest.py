"""Makes `peers`, the module beside this file, importable."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("peers", Path(__file__).with_name("peers.py"))
sys.modules["peers"] = _peers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_peers)
