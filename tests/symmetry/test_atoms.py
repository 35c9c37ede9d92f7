"""Index sets: refinement where two shapes meet, against the positions written out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxsym.symmetry.atoms import Atom, cut, direct_sum, leaves, pin, places, product, split, tie


def sizes(atom):
    return [leaf.size for leaf in leaves(atom)]


def test_a_product_refines_what_it_is_tied_to():
    flat, grid = Atom(12), product([Atom(3), Atom(4)])
    tie(flat, grid)
    assert sizes(flat) == [3, 4]
    other = product([Atom(6), Atom(2)])
    tie(other, Atom(12))
    assert sizes(other) == [6, 2]


def test_the_coarsest_common_refinement():
    one, other = product([Atom(6), Atom(2)]), product([Atom(2), Atom(6)])
    tie(one, other)
    assert sizes(one) == sizes(other) == [2, 3, 2]
    assert leaves(one) == leaves(other)


def test_what_does_not_factor_is_pinned():
    one, other = product([Atom(3), Atom(2)]), product([Atom(2), Atom(3)])
    tie(one, other)
    assert all(leaf.reason for atom in (one, other) for leaf in leaves(atom))
    assert split(Atom(5), (2, 3)) is None


def test_sums_meet():
    one, other = direct_sum([Atom(2), Atom(5)]), direct_sum([Atom(4), Atom(3)])
    tie(one, other)
    assert sizes(one) == sizes(other) == [2, 2, 3]
    assert leaves(one) == leaves(other)


def test_a_sum_meets_a_product():
    total, grid = direct_sum([Atom(4), Atom(8)]), product([Atom(3), Atom(4)])
    tie(total, grid)
    assert leaves(total) == leaves(grid)


def test_pins_reach_every_leaf_and_survive_ties():
    atom, free = product([Atom(2), Atom(3)]), Atom(6)
    pin(atom, "because")
    tie(free, atom)
    assert {leaf.reason for leaf in leaves(free)} == {"because"}
    late = Atom(6)
    tie(late, Atom(6, reason="first"))
    assert leaves(late)[0].reason == "first"


@given(st.lists(st.lists(st.integers(2, 3), min_size=1, max_size=3), min_size=1, max_size=3))
def test_places_cover_every_position_once(parts):
    atom = direct_sum([product([Atom(size) for size in part]) for part in parts])
    positions = np.concatenate([place.positions.ravel() for place in places(atom)])
    assert sorted(positions) == list(range(atom.size))
    numbers = [number for place in places(atom) for number in place.numbers]
    assert numbers == list(range(len(leaves(atom))))


def test_places_of_a_sum_inside_a_product():
    atom = product([Atom(2), direct_sum([Atom(1), Atom(3)])])
    blocks = {place.positions.shape: place.positions.tolist() for place in places(atom)}
    assert blocks == {(2,): [0, 4], (2, 3): [[1, 2, 3], [5, 6, 7]]}


@given(st.integers(1, 5), st.integers(1, 5))
def test_cut(first, second):
    atom = Atom(first + second)
    parts = cut(atom, (0, first, first + second))
    assert [part.root().size for part in parts] == [first, second]
    assert cut(product([Atom(2), Atom(3)]), (0, 2, 6)) is None
    assert [part.size for part in cut(product([Atom(2), Atom(3)]), (0, 3, 6))] == [3, 3]
