"""The configuration of Sphinx; ``sphinx-build -W docs docs/_build`` builds the documentation."""

from importlib import metadata
from typing import Any


project = "sluicegate"
author = "The sluicegate authors"
copyright = f"2026, {author}"  # noqa: A001
release = metadata.version("sluicegate")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "draw.py"]
html_theme = "furo"
html_title = f"sluicegate {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
autodoc_default_options = {"undoc-members": False}
napoleon_google_docstring = True
napoleon_use_ivar = True
nitpicky = False


def without_empty_signature(
    _app: object,
    what: str,
    _name: str,
    _obj: object,
    _options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Show no parentheses for classes that users do not call, and for exceptions without arguments of their own."""
    if what in ("class", "exception") and signature in (
        "()",
        "(*args, **kwargs)",
        "(*args: Any, **kwargs: Any)",
    ):
        return "", returns
    return signature, returns


def setup(app: Any) -> None:
    """Connect the hooks of this file to Sphinx."""
    app.connect("autodoc-process-signature", without_empty_signature)
