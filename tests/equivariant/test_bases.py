"""Bases of equivariant maps: laws at random elements over all groups, dimensions by independent routes, errors."""

import copy
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxsym.equivariant import GL, SO, A, D, Group, Lorentz, O, Product, S, SignedPermutations, Z, basis
from jaxsym.equivariant.generators import Signed, as_sparse

FIFTH = 2 * np.pi / 5
PENTAGON = np.array([[np.cos(FIFTH), -np.sin(FIFTH)], [np.sin(FIFTH), np.cos(FIFTH)]])
GROUPS = {
    "S(1)": S(1),
    "S(4)": S(4),
    "A(4)": A(4),
    "A(2)": A(2),
    "Z(5)": Z(5),
    "D(5)": D(5),
    "SignedPermutations(3)": SignedPermutations(3),
    "SO(2)": SO(2),
    "SO(3)": SO(3),
    "SO(4)": SO(4),
    "O(3)": O(3),
    "Lorentz()": Lorentz(),
    "GL(2)": GL(2),
    "Product": Product(S(3), SO(3)),
    "rotations by a fifth": Group([PENTAGON], name="rotations by a fifth"),
    "a boost": Group(lie=[[[0, 1], [1, 0]]], name="a boost"),
}


def pairs(group):
    V = group.vector
    return [(V, V), (V * V, V), (V + group.scalar, V * V.dual), (2 * V, V.dual + V)]


def equations(rep_in, rep_out):
    """What must vanish, as one dense matrix."""
    group, one = rep_in.group, np.eye(rep_in.size * rep_out.size)
    rows = [
        np.kron(as_sparse(rep_out.finite(i)).toarray(), np.linalg.inv(as_sparse(rep_in.finite(i)).toarray()).T) - one
        for i in range(group.num_finite)
    ]
    rows += [
        np.kron(rep_out.lie(i).toarray(), np.eye(rep_in.size))
        - np.kron(np.eye(rep_out.size), rep_in.lie(i).toarray().T)
        for i in range(group.num_lie)
    ]
    return np.concatenate(rows)


@pytest.mark.parametrize("name", GROUPS)
def test_a_basis_commutes_with_random_elements_is_orthonormal_and_whole(name):
    group = GROUPS[name]
    for rep_in, rep_out in pairs(group):
        found = basis(rep_in, rep_out)
        flat = found.vectors.reshape(found.dimension, rep_in.size * rep_out.size)
        np.testing.assert_allclose(flat @ flat.T, np.eye(found.dimension), atol=1e-12)
        assert found.dimension == flat.shape[1] - np.linalg.matrix_rank(equations(rep_in, rep_out), tol=1e-8)
        assert found.residual < 1e-12
        for key in jax.random.split(jax.random.key(3), 3):
            g = group.sample(key)
            g_in, g_out = rep_in.matrix(g), rep_out.matrix(g)
            scale = max(1, np.abs(g_in).max(), np.abs(g_out).max())
            for vector in found.vectors:
                np.testing.assert_allclose(g_out @ vector, vector @ g_in, atol=1e-10 * scale)


@pytest.mark.parametrize("name", GROUPS)
def test_the_projector_is_one_and_what_it_drops_does_not_commute(name):
    group = GROUPS[name]
    rep_in, rep_out = group.vector * group.vector, group.vector
    found = basis(rep_in, rep_out)
    wild = np.random.default_rng(0).standard_normal(found.shape)
    tame = found.project(wild)
    np.testing.assert_allclose(found.project(tame), tame, atol=1e-12)
    np.testing.assert_allclose(np.tensordot(found.coefficients(wild), found.vectors, 1), tame, atol=1e-12)
    with jax.enable_x64(True):
        np.testing.assert_allclose(found.map(found.coefficients(wild)), tame, atol=1e-12)
    left = equations(rep_in, rep_out) @ (wild - tame).ravel()
    assert found.dimension == wild.size or np.abs(left).max() > 1e-3
    np.testing.assert_allclose(equations(rep_in, rep_out) @ tame.ravel(), 0, atol=1e-10)


@pytest.mark.parametrize("name", GROUPS)
def test_representations_are_homomorphisms_and_compounds_are_what_they_say(name):
    group = GROUPS[name]
    V = group.vector
    g = group.sample(jax.random.key(1))
    matrix = V.matrix(g)
    np.testing.assert_allclose((V * V).matrix(g), np.kron(matrix, matrix), atol=1e-9)
    np.testing.assert_allclose(
        (V + V.dual).matrix(g), scipy.linalg.block_diag(matrix, np.linalg.inv(matrix).T), atol=1e-9
    )
    np.testing.assert_allclose(group.scalar.matrix(g), 1)
    assert V.dual.dual is V
    assert (V**0).size == 1
    assert (3 * V).size == (V * 3).size == (V + V + V).size


def elements(group):
    """All of a finite group, as matrices of its vector, by closing under the generators."""
    generators = [as_sparse(group.vector.finite(i)).toarray().astype(int) for i in range(group.num_finite)]
    known = {np.eye(group.vector.size, dtype=int).tobytes(): np.eye(group.vector.size, dtype=int)}
    fresh = list(known.values())
    while fresh:
        found = {(g @ h).tobytes(): g @ h for g in generators for h in fresh}
        fresh = [h for name, h in found.items() if name not in known]
        known |= found
    return list(known.values())


@pytest.mark.parametrize(
    ("group", "order"),
    [(S(4), 24), (A(4), 12), (A(5), 60), (Z(5), 5), (D(5), 10), (D(4), 8), (SignedPermutations(3), 48), (A(6), 360)],
)
def test_dimensions_of_finite_groups_by_characters(group, order):
    traces = np.array([np.trace(g) for g in elements(group)])
    assert len(traces) == order
    V = group.vector
    for into, out in itertools.product(range(4), range(3)):
        expected = (traces ** (into + out)).sum()
        assert basis(V**into, V**out).dimension * order == expected


ORACLES = {  # invariants of V^r, r = 1, 2, ...
    S(3): (1, 2, 5, 14, 41),
    S(4): (1, 2, 5, 15, 51),
    Z(3): (1, 3, 9, 27, 81),
    O(2): (0, 1, 0, 3, 0, 10),
    O(3): (0, 1, 0, 3, 0, 15),
    SO(3): (0, 1, 1, 3, 6, 15),  # Riordan numbers
    Lorentz(): (0, 1, 0, 4, 0, 25),
    GL(3): (0, 0, 0, 0),
    SO(1): (1, 1, 1),
}


@pytest.mark.parametrize("group", ORACLES, ids=str)
def test_invariants_of_powers(group):
    found = [basis(group.scalar, group.vector**r).dimension for r in range(1, len(ORACLES[group]) + 1)]
    assert found == list(ORACLES[group])


def test_vector_and_dual_differ_for_GL_alone():
    V = GL(3).vector
    assert basis(V, V.dual).dimension == 0
    assert [basis(V**r, V**r).dimension for r in (1, 2, 3)] == [1, 2, 6]
    assert basis(SO(3).vector, SO(3).vector.dual).dimension == 1
    metric = basis(Lorentz().vector, Lorentz().vector.dual).vectors[0]
    np.testing.assert_allclose(metric / metric[0, 0], np.diag([1.0, -1, -1, -1]), atol=1e-12)


def test_a_product_of_permutations_and_rotations():
    group = Product(S(5), SO(3))
    points, axes = group.vectors
    assert basis(points * axes, points * axes).dimension == 2
    assert (
        basis((points * axes) ** 2, points * axes).dimension == 5
    )  # the cross product, once for each partition of three
    assert basis(points, axes).dimension == 0
    assert basis(S(5).vector * axes, points * SO(3).vector).dimension == 2  # seen in it
    assert basis(group.vector, group.vector).dimension == 3
    twice = Product(S(3), S(3))
    left, right = twice.vectors
    assert (basis(left, right).dimension, basis(left, left).dimension) == (1, 2)
    wide = Product(Product(S(3), Z(2)), SO(3))
    assert basis(S(3).vector * wide.vectors[0], wide.vectors[0]).dimension > 0


def test_large_ones():
    V = S(10).vector
    assert basis(V, V * V).dimension == 5
    assert basis(V**3, V**3).dimension == 203
    V = S(30).vector
    found = basis(V * V, V * V)
    assert (found.dimension, found.residual) == (15, 0)


def test_a_representation_by_other_matrices_of_the_generators():
    group = Group([np.eye(4)[[1, 2, 3, 0]]])  # a quarter turn
    turn = group.representation([[[0, -1], [1, 0]]], name="turn")
    half = group.representation([[[-1]]], name="half")
    assert basis(group.vector, turn).dimension == 2
    assert basis(turn * turn, half).dimension == 2
    assert str(turn) == "turn of a group, size 2"


def test_a_signed_permutation_is_what_it_says():
    move = Signed(np.array([2, 0, 1]), np.array([1, -1, 1]))
    x = np.array([5.0, 6.0, 7.0])
    np.testing.assert_array_equal(move.sparse() @ x, [7, -5, 6])


def test_maps_of_jax_differentiate_vmap_and_take_leading_axes():
    found = basis(SO(3).vector ** 2, SO(3).vector)
    coefficients = jnp.arange(6.0).reshape(6, 1)
    np.testing.assert_allclose(found.map(coefficients), jax.vmap(found.map)(coefficients), atol=1e-6)
    slope = jax.grad(lambda c: (found.map(c) * found.vectors[0]).sum())(jnp.ones(1))
    np.testing.assert_allclose(slope, 1, atol=1e-6)


def test_the_same_bits_again():
    first, again = (Group([PENTAGON]) for _ in range(2))
    np.testing.assert_array_equal(
        basis(first.vector**3, first.vector).vectors, basis(again.vector**3, again.vector).vectors
    )


PHI = (1 + 5**0.5) / 2
ICOSAHEDRAL = Group(
    [
        np.roll(np.eye(3), 1, 1),
        np.diag([-1.0, -1, 1]),
        np.array([[1, -PHI, 1 / PHI], [PHI, 1 / PHI, -1], [1 / PHI, 1, PHI]]) / 2,
    ]
)


def test_rounding_is_no_equation():
    """Where a generator does nothing to what others leave, what it leaves is rounding, however small its matrix or large."""
    V = ICOSAHEDRAL.vector
    assert [basis(V**r, V**r).dimension for r in (1, 2)] == [1, 3]
    assert [basis(ICOSAHEDRAL.scalar, V**r).dimension for r in (2, 4, 6)] == [
        1,
        3,
        16,
    ]  # one more than of all rotations
    for c in range(2, 200):
        scaled = Group([[[float(c)]]])
        assert basis(scaled.vector, scaled.vector).dimension == 1
    octahedral = [SO(3).vector.finite(i) for i in range(2)]
    for angle in np.linspace(0.1, 3, 12):
        turn = scipy.linalg.block_diag([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], 1)
        group = Group([*octahedral, turn])
        assert (basis(group.vector, group.vector).dimension, basis(group.scalar, group.vector**2).dimension) == (1, 1)


def test_numbers_of_very_different_size():
    far = Group([np.diag([1, 5e9])])
    assert basis(far.vector, far.vector).dimension == 2
    lie = Group(lie=[np.diag([1.0, 1e10])])
    assert basis(lie.scalar, lie.vector).dimension == 0
    assert basis(lie.vector, lie.vector).dimension == 2


def test_integers_are_coefficients_too():
    found = basis(S(5).vector, S(5).vector)
    np.testing.assert_allclose(found.map([1, 2]), found.map([1.0, 2.0]))
    np.testing.assert_allclose(found.map(np.array([True, False])), found.map([1.0, 0.0]))


def test_what_is_shared_cannot_be_changed():
    found = basis(S(5).vector, S(5).vector)
    found.vectors[:] = 0
    assert np.abs(found.vectors).max() > 0
    for array in (found.orbits, found.weights, *S(5).vector.finite(0), basis(SO(3).vector, SO(3).vector).mix):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_sums_of_many():
    V = S(3).vector
    total = V
    for _ in range(400):
        total = total + V
    assert basis(total, V).dimension == 802
    assert total == 401 * V
    assert sum([V, V]) == 2 * V
    assert (V * V) * V == V**3
    assert (V * V + V).dual.dual == V * V + V
    assert V * np.int64(2) == 2 * V
    assert S(np.int64(3)) is S(3)
    assert basis(500 * V, 500 * V).dimension == 500_000
    assert copy.deepcopy(V).group is S(3)


BAD = {
    "no generator": (lambda: Group(), "got no generator"),
    "not square": (lambda: Group([np.ones((2, 3))]), r"shape \(2, 3\), expected a square matrix"),
    "a vector": (lambda: Group([np.ones(3)]), r"shape \(3,\)"),
    "another size": (lambda: Group([np.eye(2)], [np.eye(3)]), r"lie generator 0 has shape \(3, 3\).*\[2, 2\]"),
    "no inverse": (lambda: Group([np.ones((2, 2))]), "has no inverse"),
    "complex": (lambda: Group(lie=[[[1j]]]), "no finite real numbers"),
    "NaN": (lambda: Group(lie=[[[np.nan]]]), "no finite real numbers"),
    "too few images": (lambda: S(3).representation([np.eye(2)]), "got 1 finite matrices, expected 2"),
    "another group": (lambda: basis(S(3).vector, S(4).vector), r"of S\(3\).*expected one of S\(4\)|of S\(4\), expected one of S\(3\)"),
    "a sum of two groups": (lambda: S(3).vector + SO(3).vector, "take Product of both"),
    "a factor twice": (lambda: Product(S(3), S(3)).see(S(3).vector), "more than one factor"),
    "too large": (lambda: basis(S(30).vector ** 3, S(30).vector ** 3), r"maps \[27000, 27000\] takes about [\d.]+ GiB, expected at most 4"),
    "too many unknowns": (
        lambda: basis(GROUPS["a boost"].vector ** 5, GROUPS["a boost"].vector ** 5, memory=0.01),
        "null space of 1024 unknowns",
    ),
    "no size": (lambda: S(0), "n is 0, expected a positive integer"),
    "half a size": (lambda: SO(2.5), "n is 2.5"),
    "no copies": (lambda: 0 * S(3).vector, "got 0 of vector"),
    "a negative power": (lambda: S(3).vector ** -1, "power: got -1"),
    "coefficients": (lambda: basis(S(3).vector, S(3).vector).map(jnp.ones(3)), r"expected \[..., 2\]"),
    "a matrix": (lambda: basis(S(3).vector, S(3).vector).project(np.eye(4)), r"shape \(4, 4\), expected finite real numbers \[3, 3\]"),
    "one factor": (lambda: Product(S(3)), "expected at least two"),
    "nearly the identity": (
        lambda: basis(*[Group([np.diag([1, 1 + 1e-10])]).vector] * 2),
        "a singular value of 5e-11, and no clean gap",
    ),
    "nearly nothing": (lambda: basis(*[Group(lie=[np.diag([1, 1 + 1e-9])]).vector] * 2), "a singular value of 5e-10, and no"),
    "many copies": (lambda: 10**9 * S(3).vector, "got 1000000000 of vector"),
    "a large dense generator": (
        lambda: basis(GROUPS["rotations by a fifth"].vector ** 5, GROUPS["rotations by a fifth"].vector ** 5, memory=0.01),
        r"maps \[32, 32\] takes about [\d.]+ GiB, expected at most 0.01",
    ),
    "all maps as matrices": (lambda: basis(99 * S(99).vector, 9 * S(99).vector).vectors, "use map, project and coefficients"),
    "no memory": (lambda: basis(S(3).vector, S(3).vector, memory=np.nan), "memory is nan, expected a positive number"),
    "memory in words": (lambda: basis(S(3).vector, S(3).vector, memory="4"), "memory is '4'"),
    "rows of unlike lengths": (lambda: Group([[[0, 1], [1]]]), "generators that are no matrices"),
    "no list": (lambda: Group(3), "generators that are no matrices"),
    "an element of another group": (lambda: S(5).vector.matrix(SO(3).sample(jax.random.key(0))), r"an element of SO\(3\), expected an element of S\(5\)"),
    "a larger element": (lambda: SO(3).vector.matrix(SO(4).sample(jax.random.key(0))), r"an element of SO\(4\), expected"),
    "two groups of one name": (lambda: basis(Group([PENTAGON]).vector, Group([PENTAGON]).vector), "a group is one object"),
    "no element": (lambda: S(5).vector.matrix(3), r"got a int, expected an element of S\(5\)"),
    "a complex matrix": (lambda: basis(S(3).vector, S(3).vector).project(1j * np.eye(3)), "complex128 matrix"),
    "NaN in a matrix": (lambda: basis(S(3).vector, S(3).vector).project(np.nan * np.eye(3)), "expected finite real numbers"),
    "a matrix where there is no map": (lambda: basis(SO(3).scalar, SO(3).vector).project(np.ones((7, 7))), r"shape \(7, 7\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_was_got(case):
    wrong, said = BAD[case]
    with pytest.raises(ValueError, match=said):
        wrong()


def test_bad_types_say_so():
    with pytest.raises(TypeError, match="rep_in is of type int, expected a representation"):
        basis(3, S(3).vector)
    with pytest.raises(TypeError, match="got a int, expected groups"):
        Product(S(3), 4)
    with pytest.raises(TypeError):
        S(3).vector + 4
