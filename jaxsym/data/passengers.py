"""The passengers of the Titanic: who survived."""

import csv
import io

import jax.numpy as jnp
import numpy as np

from jaxsym.data.files import bundled
from jaxsym.data.split import Rows, Split, stratified

FILES = {"titanic.csv": "cc617601c0fd34bba962dfff96a986368cbd167f5509868de2f5f8bca43830a7"}
NUMERIC = ("age", "sibsp", "parch", "fare")
CATEGORIES = {"pclass": ("1", "2", "3"), "sex": ("female", "male"), "embarked": ("C", "Q", "S")}


def titanic(seed: int = 0, test_fraction: float = 0.2) -> Split:
    """All 1309 passengers: 12 inputs, did the person survive.

    Preprocessing, with everything fitted on the training part only: missing ages (263) and fares (1) become the
    training median, missing ports (2) the most frequent port; class, sex and port of embarkation are one-hot; then
    every column is standardised to mean 0 and standard deviation 1. The other columns of the table (name, ticket, cabin,
    boat, body, home) are not bundled: boat and body give the answer away.

    Parameters
    ----------
    seed, test_fraction
        Of the stratified division.

    Returns
    -------
    Split
        Inputs float32 ``[N, 12]``, targets int32 ``[N]`` (1 survived); 1047 training and 262 test rows by default.

    Raises
    ------
    ValueError
        If the fraction leaves a part without a class, or a training part in which a column does not vary.

    Examples
    --------
    >>> titanic().train.inputs.shape
    (1047, 12)
    """
    content = io.StringIO(bundled("titanic.csv", FILES["titanic.csv"]).decode("utf-8"))
    table = list(csv.DictReader(content))
    targets = np.array([int(row["survived"]) for row in table])
    train, test = stratified(targets, seed, test_fraction)

    columns: dict[str, np.ndarray] = {}
    for name in NUMERIC:
        values = np.array([float(row[name] or "nan") for row in table])
        columns[name] = np.where(np.isnan(values), np.nanmedian(values[train]), values)
    for name, categories in CATEGORIES.items():
        labels = np.array([row[name] for row in table])
        most_frequent = max(categories, key=lambda category: int(np.sum(labels[train] == category)))
        labels = np.where(labels == "", most_frequent, labels)
        columns |= {f"{name}={category}": (labels == category).astype(float) for category in categories}
    inputs = np.stack(list(columns.values()), axis=1)
    deviations = inputs[train].std(axis=0)
    if not deviations.all():
        same = ", ".join(name for name, deviation in zip(columns, deviations, strict=True) if not deviation)
        msg = (
            f"titanic: test_fraction {test_fraction} leaves {len(train)} training rows, all alike in {same}; take less."
        )
        raise ValueError(msg)
    inputs = (inputs - inputs[train].mean(axis=0)) / deviations

    def rows(index: np.ndarray) -> Rows:
        return Rows(jnp.asarray(inputs[index], jnp.float32), jnp.asarray(targets[index], jnp.int32))

    return Split(rows(train), rows(test), tuple(columns), ("died", "survived"))
