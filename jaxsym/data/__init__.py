"""Real data that comes with the library, a reader for IDX files, and synthetic generators.

``CATALOGUE`` maps a name to an :class:`Entry` (what it is, where it comes from, its licence, its files' checksums). Every
bundled set is a :class:`Split`: float32 inputs, int32 targets, a seeded stratified division into training and test.
"""

from jaxsym.data.catalogue import CATALOGUE, Entry
from jaxsym.data.files import idx
from jaxsym.data.images import digits, idx_folder, mnist_5k
from jaxsym.data.passengers import titanic
from jaxsym.data.split import Rows, Split, flattened, stratified
from jaxsym.data.synthetic import polynomial, teacher

__all__ = [
    "CATALOGUE",
    "Entry",
    "Rows",
    "Split",
    "digits",
    "flattened",
    "idx",
    "idx_folder",
    "mnist_5k",
    "polynomial",
    "stratified",
    "teacher",
    "titanic",
]
