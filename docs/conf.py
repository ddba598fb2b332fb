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
autodoc_typehints = "description"
autodoc_member_order = "bysource"

nb_execution_mode = "force"
nb_execution_timeout = 900  # seconds per cell, for a machine that others use; all take under four minutes
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
    """Make Mermaid's pictures known, drawn here rather than in the reader's browser."""
    app.add_directive("mermaid", drawing.Mermaid)
