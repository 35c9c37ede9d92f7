"""A slice of the fuzzer, and mutants of its groups that it must catch."""

import dataclasses

import jax
import pytest

import jaxsym as js
from tests.symmetry import fuzz
from tests.symmetry.programs import OPERATIONS, Program, drawn

ONCE = {  # programs that were once unsound
    "a change of basis across groups of units, and one within each": Program((("reshape", 671638),)),
    "a translation and half periods on one leaf": Program((("concatenate", 537336), ("residual", 42895))),
    "a sigmoid of units beside one that stands alone": Program((("slice", 636931), ("activation", 358614)), True),
    "a linear layer between two norms": Program((("norm", 416797), ("layer", 746219), ("norm", 754484)), True),
}


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(8, 60))])
def test_random_programs(seed):
    assert fuzz.failure(drawn(seed)) is None


@pytest.mark.parametrize("name", ONCE)
def test_what_was_once_unsound(name):
    assert fuzz.failure(ONCE[name]) is None


@pytest.mark.parametrize("operation", [pytest.param(name, marks=pytest.mark.long) for name in OPERATIONS])
def test_every_operation(operation):
    assert fuzz.failure(Program((("layer", 1), (operation, 2)))) is None


def mutants(sym):
    """The same group, wrong in one place."""
    for i, factor in enumerate(sym.factors):
        for j, slot in enumerate(factor.slots):
            fewer = (*factor.slots[:j], *factor.slots[j + 1 :])
            if slot in factor.units and len(factor.units) > 1:
                yield f"{factor.kind} without {'/'.join(slot.path)}", i, factor._replace(slots=fewer)
            if factor.kind == "scaling":
                wrong = (*factor.slots[:j], slot._replace(exponent=slot.exponent + 1), *factor.slots[j + 1 :])
                yield f"{factor.kind} with another exponent of {'/'.join(slot.path)}", i, factor._replace(slots=wrong)


def test_mutants_are_caught():
    caught = 0
    for seed in (0, 3):
        apply, params, inputs = drawn(seed).built()
        sym = js.discover(apply, params, *inputs)
        for name, i, factor in mutants(sym):
            wrong = dataclasses.replace(sym, factors=(*sym.factors[:i], factor, *sym.factors[i + 1 :]))
            assert not js.verify(apply, wrong, params, *inputs, key=jax.random.key(1)).ok, name
            caught += 1
    assert caught > 5


def test_a_failure_is_made_smaller(monkeypatch):
    monkeypatch.setattr(fuzz, "failure", lambda program: "fails" if ("norm", 3) in program.steps else None)
    program = Program((("layer", 1), ("dense", 2), ("norm", 3), ("layer", 4)))
    assert fuzz.smaller(program).steps == (("norm", 3),)
