"""Sphinx configuration."""

import jaxsym

project = "jaxsym"
author = "The jaxsym authors"
release = jaxsym.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
exclude_patterns = ["_build"]
napoleon_use_ivar = True  # or what a tuple names is described twice
nb_execution_mode = "off"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
