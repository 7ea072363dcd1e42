"""Sphinx reads this: python -m sphinx -W --keep-going -b html docs docs/_build  needs no network, nor do its pages."""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import proxsae  # noqa: E402

project = "proxsae"
author = "The proxsae developers"
project_copyright = author
release = version = proxsae.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "docstrings", "labels"]
exclude_patterns = ["_build", "_static"]
highlight_language = "none"  # formulas in indented blocks are not Python

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3  # the anchors that GitHub gives to headings

mathjax_path = "mathjax/tex-svg-full.js"  # one file, no fonts
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"scale": 0.93}}  # its menu would fetch more files

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_type_aliases = {"StepRule": "StepRule"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"proxsae {release}"
# The address of the repository is one field of pyproject.toml; while there is none, no page has a link to it.
addresses = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
if "Repository" in addresses:
    html_theme_options = {
        "source_repository": addresses["Repository"],
        "source_branch": "main",
        "source_directory": "docs/",
    }
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
smartquotes_action = "D"  # dashes only: quotation marks stay as they were written
