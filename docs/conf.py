"""How the documentation is built: ``sphinx-build -W docs docs/_build``."""

from importlib import metadata


project = "sluicegate"
author = "The sluicegate authors"
copyright = f"2026, {author}"  # noqa: A001
release = metadata.version("sluicegate")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sluicegate {release}"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
autodoc_default_options = {"undoc-members": False}
napoleon_google_docstring = True
napoleon_use_ivar = True
nitpicky = False
