"""A slice of the fuzzer, and mutants of its groups that it must catch."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jaxsym as js
from jaxsym.symmetry.rules import CATALOGUE
from tests.symmetry import fuzz
from tests.symmetry.networks import normal
from tests.symmetry.programs import OPERATIONS, Program, drawn

ONCE = {  # programs that were once unsound
    "a change of basis across groups of units, and one within each": Program((("reshape", 671638),)),
    "a translation and half periods on one leaf": Program((("concatenate", 537336), ("residual", 42895))),
    "a sigmoid of units beside one that stands alone": Program((("slice", 636931), ("activation", 358614)), True),
    "a slice cuts through groups of units": Program((("group_norm", 833820), ("loop", 30414))),
    "one head that grows to several": Program((("linear_attention", 985918),)),
    "a translation measured on a leaf that another moves": Program(
        (("rotary", 373835), ("maxout", 737691)), head="log softmax"
    ),
    "one unit looked up many times": Program((("pick", 732412),)),
    "units looked up along their own index": Program((("pick", 809645),), head="flat"),
    "a saturated gelu, of outputs that are rounding": Program((("skip", 449877), ("layer", 619887)), head="plain"),
    "a saturated gelu behind a scan": Program((("bilinear", 408310), ("scan", 257690)), head="plain"),
    "a linear layer between two norms": Program((("norm", 416797), ("layer", 746219), ("norm", 754484)), True),
}


GROUP = js.Symmetry((), (), {})


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(8, 60))])
def test_random_programs(seed):
    assert fuzz.outcome(drawn(seed)).failure is None


@pytest.mark.parametrize("name", ONCE)
def test_what_was_once_unsound(name):
    assert fuzz.outcome(ONCE[name]).failure is None


@pytest.mark.parametrize("operation", [pytest.param(name, marks=pytest.mark.long) for name in OPERATIONS])
def test_every_operation(operation):
    assert fuzz.outcome(Program((("layer", 1), (operation, 2)))).failure is None


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
    for program in (Program((("layer", 1), ("gate", 2))), Program((("layer", 5),), True)):
        apply, params, inputs = program.built()
        sym = js.discover(apply, params, *inputs)
        for name, i, factor in mutants(sym):
            wrong = dataclasses.replace(sym, factors=(*sym.factors[:i], factor, *sym.factors[i + 1 :]))
            assert not js.verify(apply, wrong, params, *inputs, key=jax.random.key(1)).ok, name
            caught += 1
    assert caught > 5


def within():
    """Groups of units, each with a kernel of its own."""
    params = {"a": normal(3, 6), "g": normal(2, 3, 4), "c": normal(2, 4, 2)}

    def apply(p, x):
        groups = jnp.tanh(x @ p["a"]).reshape(*x.shape[:-1], 2, 3)
        return jnp.einsum("...gj,gjk->...k", jnp.tanh(jnp.einsum("...gi,gij->...gj", groups, p["g"])), p["c"])

    return apply, params, (normal(5, 3),)


def test_permutations_of_two_groups_that_are_merged_are_caught():
    """A unit of the first group takes the place of one of the second."""
    apply, params, inputs = within()
    sym = js.discover(apply, params, *inputs)
    (factor,) = (f for f in sym.factors if (f.kind, f.size, f.copies) == ("permutation", 4, 2))
    slots = tuple(slot._replace(where=slot.where.reshape(1, 8, -1)) for slot in factor.slots)
    merged = factor._replace(size=8, copies=1, shape=(1, 8), classes=(98, 99), slots=slots)
    assert js.verify(apply, dataclasses.replace(sym, factors=(factor,)), params, *inputs).ok
    assert not js.verify(apply, dataclasses.replace(sym, factors=(merged,)), params, *inputs).ok


@pytest.mark.parametrize("primitive", ["add", "dot_general", "concatenate"])
def test_a_rule_that_ties_too_little_is_caught(monkeypatch, primitive):
    """Outputs with axes of their own: what stands on either side is moved by itself, and verification says so."""

    def loose(shapes, equation):
        for output in equation.outputs:
            shapes.fresh(output, "not tied")

    monkeypatch.setitem(CATALOGUE, primitive, CATALOGUE[primitive]._replace(shape=loose))
    program = Program((("concatenate", 537336),))
    found = fuzz.outcome(program)
    assert found.failure is not None
    assert "dropped what failed its verification" in found.failure


def test_a_failure_is_made_smaller(monkeypatch):
    fails = lambda program: "fails" if ("norm", 3) in program.steps else None  # noqa: E731
    program = Program((("layer", 1), ("dense", 2), ("norm", 3), ("layer", 4)), True, "loss")
    assert fuzz.smaller(program, fails) == Program((("norm", 3),))


def test_figures_add_up_and_a_run_goes_on(tmp_path, monkeypatch, capsys):
    """Two runs of two programs are one of four; nothing is run twice."""
    ran = []

    def outcome(program):
        ran.append(program)
        return fuzz.Outcome("falls") if len(ran) == 1 else fuzz.Outcome(None, GROUP, frozenset({"add"}))

    monkeypatch.setattr(fuzz, "outcome", outcome)
    monkeypatch.setattr(fuzz, "smaller", lambda program, *_: program)
    monkeypatch.setattr(fuzz, "certified", lambda *_: "complete")
    monkeypatch.setattr(fuzz, "compared", lambda *_: 2)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert fuzz.main(["--programs", "2", "--certify", "1", "--algebra", "9", "--out", str(first)]) == 1
    assert fuzz.main(["--programs", "1", "--seed", "7", "--certify", "1", "--out", str(second)]) == 0
    assert fuzz.main(["--programs", "2", "--seed", "7", "--certify", "1", "--out", str(second)]) == 0
    assert len(ran) == 4
    capsys.readouterr()
    assert fuzz.main(["--add", str(first), str(second)]) == 1
    said = capsys.readouterr().out
    assert "4 programs" in said
    assert "1 unsound or fallen, 3 finite, 0% with a group, 1 primitives with a rule; without one: none" in said
    assert "certified 2, 100% complete" in said
    assert "more in 1 of {'decided': 1}" in said
    with pytest.raises(ValueError, match="begins with seed 7, not 0"):
        fuzz.main(["--programs", "2", "--out", str(second)])


def test_completeness_is_measured():
    """The algebra and the certificate of a whole group, and of one that lacks a factor."""
    program = Program((("layer", 15),))
    sym = fuzz.outcome(program).sym
    lacking = dataclasses.replace(sym, factors=tuple(f for f in sym.factors if f.kind != "scaling"))
    assert lacking.dim < sym.dim
    assert (fuzz.compared(program, sym), fuzz.compared(program, lacking)) == (0, sym.dim)
    assert (fuzz.certified(program, sym), fuzz.certified(program, lacking)) == ("complete", "hidden")
