"""The wheel, as it would be published."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def build_wheel(directory: Path) -> Path:
    """Builds it from a copy of the sources, so that nothing is written into the tree."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary)
        for name in ("keras_resnet", "export"):
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
             "--wheel-dir", str(directory), str(source)],
            check=True,
        )  # fmt: skip
    (path,) = directory.glob("*.whl")
    return path
