"""The bundled sets: whole, documented, and preprocessed as said, checked by another route (pandas)."""

import hashlib
from importlib import resources

import numpy as np
import pandas as pd
import pytest

from jaxsym import data


@pytest.mark.parametrize("name", data.CATALOGUE)
class TestEntry:
    """Every entry of the catalogue."""

    def test_checksums_provenance_licence(self, name):
        entry = data.CATALOGUE[name]
        assert min(len(entry.description), len(entry.provenance), len(entry.licence)) > 5
        for file, digest in entry.files.items():
            content = resources.files("jaxsym.data").joinpath(file).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest

    def test_types_and_shares(self, name):
        split = data.CATALOGUE[name].load(seed=3, test_fraction=0.25)
        for rows in (split.train, split.test):
            assert rows.inputs.dtype == np.float32
            assert rows.targets.dtype == np.int32
            assert np.isfinite(rows.inputs).all()
            assert rows.inputs.shape[0] == rows.targets.shape[0]
        counts = [np.bincount(rows.targets, minlength=len(split.classes)) for rows in (split.train, split.test)]
        assert abs(counts[1] - 0.25 * (counts[0] + counts[1])).max() <= 0.5

    def test_the_seed_decides_the_division(self, name):
        load = data.CATALOGUE[name].load
        first, again, other = load(seed=0), load(seed=0), load(seed=1)
        np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
        assert not np.array_equal(first.train.targets, other.train.targets)

    def test_a_damaged_file_is_noticed(self, name):
        file = next(iter(data.CATALOGUE[name].files))
        with pytest.raises(ValueError, match="its SHA-256 is"):
            data.files.bundled(file, "0" * 64)


def table():
    with resources.files("jaxsym.data").joinpath("titanic.csv").open() as file:
        return pd.read_csv(file)


def test_titanic_is_the_whole_table():
    frame = table()
    assert len(frame) == 1309
    assert frame["survived"].sum() == 500
    assert frame.isna().sum().to_dict() == {
        "pclass": 0, "survived": 0, "sex": 0, "age": 263, "sibsp": 0, "parch": 0, "fare": 1, "embarked": 2,
    }  # fmt: skip


def test_titanic_preprocessing_is_fitted_on_the_training_part_only():
    split = data.titanic(seed=5, test_fraction=0.3)
    frame = table()
    train, test = data.stratified(frame["survived"].to_numpy(), 5, 0.3)
    assert sorted([*train, *test]) == list(range(1309))
    fit = frame.iloc[train]
    frame["age"] = frame["age"].fillna(fit["age"].median())
    frame["fare"] = frame["fare"].fillna(fit["fare"].median())
    frame["embarked"] = frame["embarked"].fillna(fit["embarked"].mode()[0])
    hot = pd.get_dummies(frame, columns=["pclass", "sex", "embarked"], prefix_sep="=").astype(float)[
        list(split.features)
    ]
    scaled = (hot - hot.iloc[train].mean()) / hot.iloc[train].std(ddof=0)
    np.testing.assert_allclose(split.train.inputs, scaled.iloc[train], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(split.test.inputs, scaled.iloc[test], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(split.test.targets, frame["survived"].iloc[test])


def test_images_look_like_digits():
    split = data.digits()
    assert split.train.inputs.shape[0] + split.test.inputs.shape[0] == 1797
    assert float(split.train.inputs.max()) == 1.0
    images, labels = data.mnist_5k().train
    zero, one = (np.asarray(images)[np.asarray(labels) == digit].mean(0) for digit in (0, 1))
    assert zero[14, 14] < 0.2 < 0.8 < one[14, 14]  # a zero is hollow, a one is not


@pytest.mark.parametrize(
    ("fraction", "message"), [(0.0, "between 0 and 1"), (1.0, "between 0 and 1"), (1e-4, "leaves training or test")]
)
def test_bad_fraction(fraction, message):
    with pytest.raises(ValueError, match=message):
        data.titanic(test_fraction=fraction)
