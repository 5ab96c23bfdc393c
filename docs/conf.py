"""How `make docs` builds the site from these sources, without the network and with warnings as errors."""

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of notebooks: their models are too small to share out

import reference_pages  # noqa: E402 (it lies beside this file)

project = "vaecli"
copyright = "The vaecli authors"  # noqa: A001 (Sphinx's name for it)
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",  # which brings its own MathJax
]
exclude_patterns = ["_build", "comparison/figures", "papers/*/figures"]
nitpicky = False
default_role = "py:obj"
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = "vaecli"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fae", "color-brand-content": "#1f5fae"},
    "dark_css_variables": {"color-brand-primary": "#7db4f5", "color-brand-content": "#7db4f5"},
}
pygments_dark_style = "github-dark"

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds of a cell
nb_execution_in_temp = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True


def _as_rst(app: object, what: str, name: str, of: object, options: object, lines: list[str]) -> None:  # noqa: ARG001
    """Let docstrings, whose `code` and |θ| are plain text, be reStructuredText."""
    lines[:] = [
        re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line).replace("|", r"\|").replace("*", r"\*") for line in lines
    ]


def _without_arguments(app: object, what: str, *found: object) -> tuple[str, None] | None:  # noqa: ARG001
    """Leave out how a class is constructed: it is done by functions, and a config's arguments are its keys."""
    return ("", None) if what == "class" else None


def setup(app: object) -> None:
    """Write the pages that are generated, before any is read."""
    reference_pages.write(HERE / "reference")
    app.connect("autodoc-process-docstring", _as_rst, priority=100)  # type: ignore[attr-defined]
    app.connect("autodoc-process-signature", _without_arguments)  # type: ignore[attr-defined]
