"""Sphinx configuration; builds without a network."""

import os
import shutil
import sys
import tempfile
from importlib.metadata import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
info = metadata("scdrugmap")
project = "scdrugmap"
author = "The scdrugmap developers"
copyright = "2026, the scdrugmap developers"
version = release = info["Version"]

# Notebook kernels inherit these: small runs, quiet progress bars.
os.environ.setdefault("TQDM_DISABLE", "1")
# The command line of this very environment, also when it is not activated.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# What runs in each kernel before the page does.
profile = Path(tempfile.mkdtemp()) / "profile_default" / "startup"
profile.mkdir(parents=True)
shutil.copy(Path(__file__).parent / "_ext" / "kernel_startup.py", profile)
os.environ["IPYTHONDIR"] = str(profile.parents[1])
os.environ.setdefault("SCDRUGMAP_SHARED", str(Path(__file__).resolve().parents[2] / "shared"))

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "catalogue_pages",
    "model_table",
    "server_screenshots",
]
# Links into other projects need their inventories from the network; a build without one must not fail.
if os.environ.get("READTHEDOCS") or os.environ.get("SCDRUGMAP_DOCS_LINKS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
        "mudata": ("https://mudata.readthedocs.io/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }
autosummary_generate = True
autodoc_member_order = "groupwise"
autodoc_typehints = "description"
# scikit-learn makes these, and their texts point into its own documentation
autodoc_default_options = {"exclude-members": "set_fit_request, set_score_request"}
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = True
napoleon_use_param = True
typehints_defaults = "comma"
always_use_bars_union = True
suppress_warnings = ["sphinx_autodoc_typehints", "mystnb.unknown_mime_type"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# autosummary writes its pages in the first suffix that reStructuredText has
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
templates_path = ["_templates"]
exclude_patterns = ["_server_screenshots.md", "_build", "jupyter_execute", "**.ipynb_checkpoints"]

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "repository_url": "https://github.com/scdrugmap/scdrugmap",
    "use_repository_button": True,
    "path_to_docs": "docs/",
}
