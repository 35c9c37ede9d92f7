"""Images of handwritten digits that come with the library."""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxsym.data.files import bundled, parse_idx
from jaxsym.data.split import Rows, Split, stratified

DIGITS = {
    "digits-images.idx3.gz": "16bf71e8bfa958f11ad68a045567f2a2f5362b27ab1e7cadd4cf9a3cbb37176e",
    "digits-labels.idx1.gz": "22e1486adc7849d49bbac7f3e6227134ade1aea8cf5289c8dceeecd5a005d43c",
}
MNIST_5K = {
    "mnist_5k-images.idx3.gz": "66f9ac540966baaec46dc847ef780170f83ff188761931c0115f3f60497c4797",
    "mnist_5k-labels.idx1.gz": "0bd1c3ebe2126da16fe15ba87422f75d0a4b37066970e0e29aa16577a2857965",
}


def digits(seed: int = 0, test_fraction: float = 0.2) -> Split:
    """Handwritten digits, 1797 images of 8 x 8 pixels, 10 classes.

    Parameters
    ----------
    seed, test_fraction
        Of the stratified division.

    Returns
    -------
    Split
        Inputs float32 ``[N, 8, 8]`` in [0, 1] (the 17 grey levels divided by 16), targets int32 ``[N]``.

    Examples
    --------
    >>> digits().test.inputs.shape
    (359, 8, 8)
    """
    return _images(DIGITS, 16, seed, test_fraction)


def mnist_5k(seed: int = 0, test_fraction: float = 0.2) -> Split:
    """A subset of MNIST, 500 images of each digit: 5000 images of 28 x 28 pixels, 10 classes.

    Parameters
    ----------
    seed, test_fraction
        Of the stratified division.

    Returns
    -------
    Split
        Inputs float32 ``[N, 28, 28]`` in [0, 1], targets int32 ``[N]``.

    Examples
    --------
    >>> mnist_5k().train.inputs.shape
    (4000, 28, 28)
    """
    return _images(MNIST_5K, 255, seed, test_fraction)


def _images(files: dict[str, str], white: int, seed: int, test_fraction: float) -> Split:
    images, labels = (parse_idx(io.BytesIO(bundled(name, digest)), Path(name)) for name, digest in files.items())

    def rows(index: np.ndarray) -> Rows:
        return Rows(jnp.asarray(images[index] / white, jnp.float32), jnp.asarray(labels[index], jnp.int32))

    train, test = stratified(labels, seed, test_fraction)
    return Split(rows(train), rows(test), (), tuple(str(label) for label in range(10)))
