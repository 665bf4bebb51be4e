"""How Sphinx builds the site: ``python -m sphinx -W docs docs/_build``, with the extra ``docs`` installed.

The gallery shows every example with the picture that lies beside it. A build runs only the two that are quick and draw
nothing, and shows what they print. ``GALLERY='.*'`` runs all of them, which takes half an hour and draws the pictures
anew; any other pattern of names may be given as well, and ``GALLERY=none`` runs nothing.
"""

import inspect
import os
import re
from pathlib import Path

import numba_hinv

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

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
default_role = "py:obj"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": os.environ.get("GALLERY", "/(quickstart|embed_in_njit)\\.py"),
    "ignore_pattern": r"^(digits|measure)\.py$",
    "remove_config_comments": True,
    "min_reported_time": 1e9,
    "show_memory": False,
    "write_computation_times": False,
    "download_all_examples": False,
}


def add_picture(app, docname, source):
    """Put the picture of an example below its title, where the build has not drawn one."""
    folder, _, name = docname.rpartition("/")
    if folder == "gallery" and (EXAMPLES / f"{name}.png").exists() and "sphx-glr-single-img" not in source[0]:
        head, line, rest = re.split(r"^(=+\n)", source[0], maxsplit=1, flags=re.M)
        source[0] = f"{head}{line}\n.. image:: ../../examples/{name}.png\n   :alt: What {name}.py draws\n\n{rest}"


def public_members(app, what, name, obj, skip, options):
    """Leave out what a class inherits from SciPy's LinearOperator, Python's tuples or scikit-learn's routing.

    Fields of named tuples are described where the class describes its attributes.
    """
    routing = name == "get_metadata_routing" or re.fullmatch(r"set_\w+_request", name)
    is_field = (getattr(obj, "__doc__", None) or "").startswith("Alias for field number")
    return skip or bool(routing) or is_field or (inspect.isfunction(obj) and not (obj.__doc__ or "").strip()) or None


def setup(app):
    app.connect("autodoc-skip-member", public_members)
    app.connect("source-read", add_picture)
