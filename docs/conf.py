"""The pages of this directory, and a reference made of the docstrings: `make docs`."""

import inspect
import sys
from pathlib import Path

from keras_resnet.quiet import import_tensorflow

import_tensorflow()

import keras_resnet  # noqa: E402
from keras_resnet import architecture, data, export, training, weights  # noqa: E402
from keras_resnet.export import optimize  # noqa: E402

project = "keras_resnet"
version = release = keras_resnet.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["**/README.md"]
default_role = "code"
html_theme = "furo"
html_show_copyright = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and dtypes, which types do not
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Pages link to programs and pictures of the repository, which are no part of the documentation.
suppress_warnings = ["myst.xref_missing"]

# The builders differ by their row of the table of networks alone: one stands for all.
SHOWN_BUILDER = "ResNet50"
MODULES = {
    "keras_resnet": keras_resnet,
    "keras_resnet.data": data,
    "keras_resnet.training": training,
    "keras_resnet.weights": weights,
    "keras_resnet.export": export,
    "keras_resnet.export.optimize": optimize,
}


def is_shown(module: object, name: str) -> bool:
    """Whether a public name gets an entry: a function or a class that is not told elsewhere."""
    if name in architecture.BUILDERS:
        return name == SHOWN_BUILDER
    if module is not keras_resnet and name in keras_resnet.__all__:
        return False
    thing = getattr(module, name)
    return inspect.isclass(thing) or inspect.isfunction(thing)


def write_reference(app: object) -> None:
    """A page per module, with every name that it makes public."""
    directory = Path(app.srcdir) / "api"
    directory.mkdir(exist_ok=True)
    for title, module in MODULES.items():
        lines = [title, "=" * len(title), "", f".. currentmodule:: {title}", ""]
        lines += [*inspect.getdoc(module).splitlines(), ""]
        for name in sorted(module.__all__, key=str.lower):
            if not is_shown(module, name):
                continue
            is_class = inspect.isclass(getattr(module, name))
            lines += [f".. auto{'class' if is_class else 'function'}:: {name}", ""]
            if is_class:
                lines[-1:] = ["   :members:", "   :special-members: __call__", ""]
        page = "\n".join(lines) + "\n"
        path = directory / f"{title}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            path.write_text(page, encoding="utf-8")


def setup(app: object) -> None:
    """What Sphinx calls."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10_000))
    app.connect("builder-inited", write_reference)
