"""The page of a sweep: every sentence, table and picture is computed from the combined dataset and the cells' records."""

from jaxsym.sweep_page.facts import CellFacts, read
from jaxsym.sweep_page.page import Page, build

__all__ = ["CellFacts", "Page", "build", "read"]
