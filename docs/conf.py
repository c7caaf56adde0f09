"""How the documentation is built: `sphinx-build -W --keep-going -q -b html docs OUT`."""

from __future__ import annotations

from importlib.metadata import version as _version

project = "tiledwriter"
author = "The tiledwriter authors"
version = release = _version("tiledwriter")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "explanations/performance"]  # the latter's files are included in pages
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_title = f"tiledwriter {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"navigation_with_keys": False, "show_prev_next": True, "show_nav_level": 1}
