"""Images of handwritten digits that come with the library."""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxsym.data.files import bundled, idx, parse_idx
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


def idx_folder(path: str | Path) -> Split:
    """Images in the four files of MNIST or Fashion-MNIST, gzipped or not: ``train-images-idx3-ubyte`` and its three companions.

    Parameters
    ----------
    path
        The folder that holds them.

    Returns
    -------
    Split
        Inputs float32 ``[N, rows, columns]`` in [0, 1] (uint8 divided by 255), targets int32 ``[N]``.

    Raises
    ------
    FileNotFoundError
        If one of the files is missing.
    ValueError
        If one is no IDX file, images are not uint8 ``[N, rows, columns]``, or their number is not that of the labels.
    """
    folder = Path(path).expanduser()
    train, test = _idx_rows(folder, "train"), _idx_rows(folder, "t10k")
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        msg = f"{folder}: training images have shape {train.inputs.shape[1:]}, those of t10k {test.inputs.shape[1:]}; expected the same."
        raise ValueError(msg)
    most = int(max(train.targets.max(), test.targets.max()))
    return Split(train, test, (), tuple(str(label) for label in range(most + 1)))


def _idx_rows(folder: Path, part: str) -> Rows:
    def read(name: str) -> np.ndarray:
        plain = folder / f"{part}-{name}-ubyte"
        return idx(plain if plain.is_file() else plain.with_name(plain.name + ".gz"))

    images, labels = read("images-idx3"), read("labels-idx1")
    if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1] or not len(labels):
        msg = (
            f"{folder}: {part}-images has shape {images.shape} and type {images.dtype}, {part}-labels {labels.shape};"
            " expected uint8 [N, rows, columns] and N labels."
        )
        raise ValueError(msg)
    return Rows(jnp.asarray(images / 255, jnp.float32), jnp.asarray(labels, jnp.int32))


def _images(files: dict[str, str], white: int, seed: int, test_fraction: float) -> Split:
    images, labels = (parse_idx(io.BytesIO(bundled(name, digest)), Path(name)) for name, digest in files.items())

    def rows(index: np.ndarray) -> Rows:
        return Rows(jnp.asarray(images[index] / white, jnp.float32), jnp.asarray(labels[index], jnp.int32))

    train, test = stratified(labels, seed, test_fraction)
    return Split(rows(train), rows(test), (), tuple(str(label) for label in range(10)))
