"""How Sphinx builds the site: ``python -m sphinx -W docs docs/_build``, with the extra ``docs`` installed.

The gallery shows the examples with the pictures that lie beside them; ``GALLERY=run`` runs them all.
"""

import inspect
import os

import numba_hinv

project = "numba_hinv"
author = "the numba_hinv developers"
copyright = author
release = version = numba_hinv.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = "numba_hinv"
html_theme_options = {"show_toc_level": 2, "navigation_depth": 2, "footer_start": [], "footer_end": []}

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py",
    "ignore_pattern": r"(digits|measure)\.py",
    "plot_gallery": os.environ.get("GALLERY") == "run",
    "download_all_examples": False,
}


def public_members(app, what, name, obj, skip, options):
    """Leave out what a class has from SciPy's LinearOperator or Python's tuples without saying anything of its own."""
    return skip or (inspect.isfunction(obj) and not (obj.__doc__ or "").strip()) or None


def setup(app):
    app.connect("autodoc-skip-member", public_members)
