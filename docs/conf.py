"""How Sphinx builds the site: `make docs`. Nothing is fetched, and a warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import drawing  # noqa: E402  these stand beside this file
import generated  # noqa: E402

from flair2_exp import __version__  # noqa: E402

generated.write(HERE / "reference" / "generated")

project = "flair2-exp"
release = version = __version__
copyright = "the authors, Apache 2.0"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "reference/generated", "notebooks/*.ipynb", "notebooks/work"]
suppress_warnings = ["mystnb.unknown_mime_type"]  # progress bars of libraries, as widgets

myst_enable_extensions = ["colon_fence", "deflist"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
default_role = "literal"  # docstrings mark code as Markdown does
autodoc_typehints = "description"
autodoc_member_order = "bysource"

nb_execution_mode = "force"
nb_execution_timeout = 900  # seconds per cell, where others use the machine as well
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_merge_streams = True

html_theme = "pydata_sphinx_theme"
html_title = "flair2-exp"
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {page: [] for page in ("index", "tutorial", "notebooks/*", "changes")}
html_static_path = ["_static"]
html_css_files = ["site.css"]


def setup(app: Sphinx) -> None:
    """Draw Mermaid's pictures here, not in the reader's browser; mend what Napoleon misreads."""
    app.add_directive("mermaid", drawing.Mermaid)
    app.connect("autodoc-process-docstring", keep_sentence, priority=400)


def keep_sentence(app: object, what: str, name: str, owner: object, options: object,
                  lines: list[str]) -> None:  # fmt: skip
    """Keep Napoleon, which comes after, from taking a property's "One row: …" for its type."""
    if what == "property" and lines:
        lines[0] = lines[0].replace(": ", " – ", 1)
