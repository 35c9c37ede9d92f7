"""Colours: the systems of the 2019 note, held against bases of the groups and against a search by hand."""

import itertools

import numpy as np
import pytest

from jaxsym.equivariant import SYSTEMS, Equations, Group, S, basis, colours, constrained, mixed
from jaxsym.equivariant.colours import folded, folded_quadratic, linear, quadratic


def flooded(equations):
    """Number of classes by repainting, one equation after another."""
    paint = {entry: entry for entry in np.ndindex(equations.shape)}
    for left, right in equations.equal:
        old, new = paint[left], paint[right]
        paint = {entry: new if colour == old else colour for entry, colour in paint.items()}
    return len(set(paint.values()))


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("n", [2, 4, 6])
def test_classes_by_repainting(name, n):
    equations = SYSTEMS[name](n)
    found = colours(equations)
    assert found.number == flooded(equations) == len(np.unique(found.tensor))
    assert all(found.tensor[left] == found.tensor[right] for left, right in equations.equal)
    first = [np.flatnonzero(found.tensor.ravel() == colour)[0] for colour in range(found.number)]
    assert first == sorted(first)


def test_the_numbers_of_the_note():
    assert [colours(linear(n)).number for n in range(2, 7)] == [2] * 5
    assert [colours(quadratic(n)).number for n in range(2, 9)] == [6, 9, 11, 13, 15, 17, 19]
    assert all(colours(quadratic(n)).number == 2 * n + 3 for n in range(3, 9))
    found = colours(folded(6))
    assert found.number == 5
    assert found.tensor.tolist() == [[0, 1, 1, 2, 3, 4], [1, 0, 1, 2, 3, 4], [1, 1, 0, 2, 3, 4]]


def test_the_folded_quadratic_case_that_the_note_leaves_out():
    found = {m: colours(folded_quadratic(2 * m)).number for m in range(1, 7)}
    assert found == {1: 4, 2: 18, 3: 30, 4: 43, 5: 58, 6: 75}
    for m in range(3, 7):  # m^2 of unfolded pairs, 4 m of mixed ones, and those of m inputs
        assert found[m] == m**2 + 4 * m + colours(quadratic(m)).number


def transposed(tensor, h, k):
    """A map with inputs and outputs exchanged alike."""
    order = np.arange(tensor.shape[0])
    order[[h, k]] = k, h
    return tensor[np.ix_(*[order] * tensor.ndim)]


def function(tensor):
    """What a quadratic map does: antisymmetric parts do nothing."""
    return tensor + np.swapaxes(tensor, 1, 2)


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_colours_alone_are_not_equivariant_and_line_8_mends_it(n):
    found = colours(quadratic(n))
    random = np.random.default_rng(0)
    wild = random.standard_normal(found.number)[found.tensor]
    assert (
        max(np.abs(function(transposed(wild, h, k) - wild)).max() for h, k in itertools.combinations(range(n), 2)) > 0.1
    )
    kept = constrained(found, mixed(n))
    assert len(kept) == n + 4
    tame = np.tensordot(random.standard_normal(len(kept)), kept, 1)
    for h, k in itertools.combinations(range(n), 2):
        np.testing.assert_allclose(function(transposed(tame, h, k) - tame), 0, atol=1e-12)
    V = S(n).vector
    tensors = basis(V * V, V).vectors.reshape(-1, n, n, n)
    assert (len(tensors), rank(tensors), rank(kept)) == (5, 4, 4)
    assert rank(np.concatenate([tensors, kept])) == 4


def rank(tensors):
    return np.linalg.matrix_rank(np.stack([function(t).ravel() for t in tensors]))


def test_two_inputs_are_special():
    V = S(2).vector
    tensors = basis(V * V, V).vectors.reshape(-1, 2, 2, 2)
    assert (len(tensors), rank(tensors)) == (4, 3)


def test_for_which_group_the_folded_pattern_is_equivariant():
    pattern = colours(folded(6)).tensor
    S3 = S(3)
    ends = basis(S3.vector + 3 * S3.scalar, S3.vector)
    assert ends.dimension == 5
    for colour in range(5):
        map_ = (pattern == colour).astype(float)
        np.testing.assert_allclose(ends.project(map_), map_, atol=1e-12)
    # folding: input i lies on input i + 3, pairs are exchanged as wholes and their halves freely
    halves = [[3, 1, 2, 0, 4, 5], [1, 0, 2, 4, 3, 5], [1, 2, 0, 4, 5, 3]]
    wreath = Group([np.eye(6)[order] for order in halves])
    pairs = wreath.representation([np.eye(3), np.eye(3)[[1, 0, 2]], np.eye(3)[[1, 2, 0]]])
    assert basis(wreath.vector, pairs).dimension == 2
    map_ = (pattern == 0).astype(float)
    assert np.abs(basis(wreath.vector, pairs).project(map_) - map_).max() > 0.1


def test_equations_of_ones_own():
    found = colours([((0, 0), (1, 1)), ((0, 1), 0.0), ((1, 0), 2)])
    assert found.number == 3
    assert found.tensor.tolist() == [[0, 1], [2, 0]]
    np.testing.assert_array_equal(found.values, [np.nan, 0, 2])
    assert colours(Equations((2, 2), ())).number == 4


BAD = {
    "none": (lambda: colours([]), "got none"),
    "of two ranks": (lambda: colours([((0, 0), (1, 1, 1))]), r"inconsistent equations: entry \(1, 1, 1\) beside \(0, 0\)"),
    "negative": (lambda: colours([((0, -1), (1, 1))]), r"inconsistent equations: entry \(0, -1\)|entry \(0, -1\) beside"),
    "two values": (
        lambda: colours([((0, 0), (1, 1)), ((0, 0), 1.0), ((1, 1), 2.0)]),
        r"inconsistent equations: entries \(0, 0\) and \(1, 1\) are of one colour, and have the values 1 and 2",
    ),
    "outside": (lambda: colours(Equations((2, 2), (((0, 2), (0, 0)),))), r"entry \(0, 2\) is none of a tensor of shape \(2, 2\)"),
    "text": (lambda: colours([((0, 0), "x")]), "set equal to 'x', expected another entry or a finite number"),
    "NaN": (lambda: colours([((0, 0), np.nan)]), "finite number"),
    "odd": (lambda: folded(5), "n is 5, expected an even number"),
    "nothing": (lambda: quadratic(0), "quadratic: n is 0, expected a positive integer"),
    "a value in the way": (lambda: constrained(colours([((0,), 1.0)]), []), "colour 0 has a value"),
    "no tuples": (lambda: colours([(0, 1)]), r"got \(0, 1\), expected a pair of entries, each a tuple"),
    "as large as that": (lambda: colours([((10**6, 10**6), (0, 0))]), r"1e\+12 entries, expected at most 1e\+08"),
    "three entries": (lambda: colours([((0, 0), (1, 1), (2, 2))]), "expected a pair"),
    "a truth": (lambda: colours([((True, 0), (1, 1))]), r"inconsistent equations: entry \(True, 0\)"),
    "no shape": (lambda: colours(Equations(3, ())), "shape is 3, expected a tuple"),
    "a shape in halves": (lambda: colours(Equations((2.0, 2), ())), "expected a tuple of positive integers"),
    "line 8 of nothing": (lambda: mixed(-3), "mixed: n is -3"),
    "a coefficient that is none": (lambda: constrained(colours(linear(2)), [{(0, 0): np.nan}]), "finite number"),
    "large tensors": (lambda: constrained(colours(Equations((40, 40, 40), ())), []), "64000 tensors .* GiB, expected at most 4"),
    "a form outside": (lambda: constrained(colours(linear(2)), [{(0, 5): 1.0}]), r"entry \(0, 5\) is none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_equations_say_what_was_got(case):
    wrong, said = BAD[case]
    with pytest.raises(ValueError, match=said):
        wrong()


def test_bad_types_say_so():
    for wrong in (5, linear, "linear", {(0, 0): (1, 1)}):
        with pytest.raises(TypeError, match="expected pairs of entries"):
            colours(wrong)
    with pytest.raises(TypeError, match="got a Equations, expected what colours"):
        constrained(linear(3), [])
    with pytest.raises(TypeError, match="no list of dictionaries"):
        constrained(colours(linear(3)), {(0, 0): 1.0})
