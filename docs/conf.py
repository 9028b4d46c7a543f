"""Configuration of the documentation; ``make docs`` builds it."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from commands import write_commands  # noqa: E402
from notebooks import copy_notebooks, list_others, write_gallery  # noqa: E402
from reachable import inventories  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

from trvae_sc.cli._parser import make_parser  # noqa: E402

project = "trvae_sc"
author = "trvae_sc developers"
copyright = f"2026, {author}"
version = release = installed("trvae_sc")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "docstrings",
    "mathml",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints", "tutorials/data"]
nitpicky = True
default_role = "code"  # `name` in a docstring is code
suppress_warnings = ["mystnb.unknown_mime_type"]

# -- pages and notebooks --------------------------------------------------------------------------------

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are those that are stored in the notebooks
nb_merge_streams = True
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

copy_notebooks(HERE.parent / "tutorials", HERE / "tutorials")
write_gallery(HERE.parent / "tutorials" / "gallery.ipynb", HERE)
write_commands(make_parser(), HERE / "api" / "commands.md")

# -- docstrings -----------------------------------------------------------------------------------------

autosummary_generate = True
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_use_rtype = True
napoleon_use_param = True
typehints_defaults = "braces"
always_use_bars_union = True
typehints_use_rtype = False

intersphinx_mapping = inventories(
    {
        "anndata": "https://anndata.readthedocs.io/en/stable/",
        "matplotlib": "https://matplotlib.org/stable/",
        "numpy": "https://numpy.org/doc/stable/",
        "pandas": "https://pandas.pydata.org/docs/",
        "python": "https://docs.python.org/3/",
        "scanpy": "https://scanpy.readthedocs.io/en/stable/",
        "scipy": "https://docs.scipy.org/doc/scipy/",
        "scvi-tools": "https://docs.scvi-tools.org/en/stable/",
        "torch": "https://docs.pytorch.org/docs/stable/",
    }
)
#: Names of other packages: links where their inventory can be read, else text.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(np|pd|anndata|collections|h5py|huggingface_hub|lightning|matplotlib|numpy|os|pandas|pathlib|scanpy|"
        r"scipy|scvi|sklearn|torch|types|typing|zarr)\..*",
    ),
    (
        "py:.*",
        r"(\w+Error|Ellipsis|KeyboardInterrupt|None|Any|bool|bytes|dict|float|int|list|object|set|str|tuple|type)",
    ),
]

# -- appearance -----------------------------------------------------------------------------------------

html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_title = f"trvae_sc {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["llms.txt"]
html_show_sphinx = False
html_theme_options = {
    "collapse_navbar": True,  # a page of the API need not hold links to all others
    "home_page_in_toc": False,
    "navbar_persistent": [],  # the sidebar has the search
    "navigation_with_keys": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}


def setup(app: Sphinx) -> None:
    """Connect what is particular to these pages."""
    app.connect("source-read", list_others)
