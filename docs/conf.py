"""How Sphinx builds these pages: `make docs`. Nothing is fetched, and a warning is an error."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

import recdistill_core

project = "recdistill"
author = "the recdistill authors"
release = recdistill_core.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"recdistill {release}"
root_doc = "README"
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!recdistill).*"),  # other projects' names: linking them would fetch their inventories
    ("py:.*", r"recdistill_core\.\w+\.(?:[CPRT]|_T)"),  # type variables
    (
        "py:.*",
        r"recdistill_parquet\.(dataset|labels)_(?!writer\.write)\w+\..*",
    ),  # not public, but in signatures that are
]


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give every README the table of contents that its links are, so that the page stays plain Markdown."""
    folder, _, name = docname.rpartition("/")
    if name != "README":
        return
    here = Path(app.srcdir) / folder
    linked = [link for link in re.findall(r"\]\(([\w./-]+\.md)\)", source[0]) if (here / link).is_file()]
    beside = sorted(path.name for path in here.glob("*.md") if path.name != "README.md")
    pages = [page for page in dict.fromkeys([*linked, *beside]) if not page.startswith("..")]
    source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
