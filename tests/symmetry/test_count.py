"""Counts against brute force and against the groups that discovery finds."""

import itertools

import jax
import pytest

import jaxsym as js
from jaxsym.models.activation import CATALOGUE
from tests.symmetry.networks import X


def partitions(items):
    """All ways to split a list into sets."""
    if not items:
        yield []
        return
    first, *others = items
    for split in partitions(others):
        yield [[first], *split]
        for i in range(len(split)):
            yield [*split[:i], [first, *split[i]], *split[i + 1 :]]


@pytest.mark.parametrize(("r", "m"), [(r, r + more) for r in range(1, 4) for more in range(4)])
def test_minima_by_brute_force(r, m):
    """Split the units into sets; give each of the r to one set; the other sets' output weights sum to 0."""
    found = sum(1 for split in partitions(list(range(m))) for _ in itertools.permutations(range(len(split)), r))
    assert js.count.minima(r, m) == found


@pytest.mark.parametrize(("r", "m"), [(r, m) for m in range(6) for r in range(m + 1)])
def test_saddles_by_brute_force(r, m):
    assert js.count.saddles(r, m) == sum(
        set(choice) == set(range(r)) for choice in itertools.product(range(r), repeat=m)
    )


def test_one_unit_more():
    """T(r, r + 1) = (r + 1)! (r + 2) / 2."""
    factorial = 1
    for r in range(1, 30):
        factorial *= r
        assert js.count.minima(r, r + 1) * 2 == factorial * (r + 1) * (r + 2)


def test_when_saddles_outnumber_minima():
    rows = js.count.critical(6, range(6, 30))
    assert rows[0].ratio > 1 > rows[-1].ratio
    assert [row.ratio for row in rows] == sorted((row.ratio for row in rows), reverse=True)
    assert rows[2].saddles == sum(js.count.saddles(k, 8) for k in range(1, 6))


@pytest.mark.parametrize("activation", CATALOGUE)
def test_the_order_is_that_of_the_group(activation):
    net = js.models.MLP((4, 5, 2), activation)
    params = jax.eval_shape(net.init, jax.random.key(0), X)
    assert js.count.order((3, 4, 5, 2), activation) == js.discover(net.apply, params, X).order


def test_functional_dimension():
    assert js.count.functional_dimension((1, 3, 1)) == 7
    assert js.count.functional_dimension((2, 3, 3, 1)) == 19
    assert js.count.functional_dimension((5, 3)) == 18  # a linear layer: all of them


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: js.count.order((3,), "tanh"), r"widths are \(3,\)"),
        (lambda: js.count.order((3, 0, 1), "tanh"), "all positive integers"),
        (lambda: js.count.order((3, 4, 1), "tanhh"), "unknown activation 'tanhh': did you mean tanh"),
        (lambda: js.count.functional_dimension((3, 2.5, 1)), "all positive integers"),
        (lambda: js.count.minima(3, 2), "r = 3 units in a network of m = 2"),
        (lambda: js.count.saddles(-1, 2), "0 <= r <= m"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
