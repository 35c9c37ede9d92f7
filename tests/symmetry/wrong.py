"""Actions that look like symmetries and are none: each must fail its verification. Builders of ``(apply, sym, params, inputs)``."""

import dataclasses

import flax.linen as nn
import jax

import jaxsym as js
from tests.symmetry.networks import BUILDERS, IMAGES, KEY, X


def relu_group():
    net = js.models.MLP((4, 2), "relu")
    params = net.init(KEY, X)
    return net, params, js.discover(net.apply, params, X)


def changed(sym, number=0, **changes):
    """The same group with one factor changed."""
    factors = [f._replace(**changes) if i == number else f for i, f in enumerate(sym.factors)]
    return dataclasses.replace(sym, factors=tuple(factors))


def rescaled(activation):
    """The group of a ReLU network, on another one; inputs reach far enough for ReLU6 to meet its ceiling."""
    _, params, sym = relu_group()
    return js.models.MLP((4, 2), activation).apply, sym, params, (50 * X,)


def reader_left_out():
    net, params, sym = relu_group()
    return net.apply, changed(sym, slots=sym.factors[0].slots[:-1]), params, (X,)


def wrong_exponent():
    net, params, sym = relu_group()
    first, *others = sym.factors[0].slots
    return net.apply, changed(sym, slots=(first._replace(exponent=2.0), *others)), params, (X,)


def across_heads():
    """Units may be permuted within a head, and heads as a whole; not units across heads."""
    network = BUILDERS["fused attention"]()
    sym = js.discover(network.apply, network.params, *network.inputs)
    slots = [slot._replace(where=slot.where.reshape(1, 6, 1)) for factor in sym.factors[:2] for slot in factor.slots]
    kind = sym.factors[0]._replace(
        kind="permutation", size=6, copies=1, shape=(1, 6), classes=(98, 99), slots=tuple(slots)
    )
    return network.apply, dataclasses.replace(sym, factors=(kind,)), network.params, network.inputs


class Evaluated(nn.Module):
    """A convolution, and batch statistics in evaluation mode."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(2)(nn.tanh(x).mean((1, 2)))


def statistic_left_out():
    """Units are permuted, and their running means are not."""
    net = Evaluated()
    params = net.init(KEY, IMAGES)
    sym = js.discover(net.apply, params, IMAGES)
    permutation = sym.factors[-1]
    slots = tuple(slot for slot in permutation.slots if slot.path[0] != "batch_stats")
    assert len(slots) == len(permutation.slots) - 2
    return net.apply, dataclasses.replace(sym, factors=(permutation._replace(slots=slots),)), params, (IMAGES,)


def unshifted_statistic():
    """The bias before a running mean is shifted, and the mean is not."""
    net = Evaluated()
    params = net.init(KEY, IMAGES)

    def shift(t, variables):
        bias = variables["params"]["Conv_0"]["bias"] + t
        inner = variables["params"] | {"Conv_0": variables["params"]["Conv_0"] | {"bias": bias}}
        return variables | {"params": inner}

    return net.apply, js.Symmetry.from_action(shift, 4), params, (IMAGES,)


def behind_a_mask():
    """A wrong rescaling beside an output that is a large constant."""
    _, params, sym = relu_group()
    net = js.models.MLP((4, 2), "tanh")
    apply = lambda p, x: jax.numpy.where(jax.numpy.array([True, False]), net.apply(p, x), -1e30)  # noqa: E731
    return apply, sym, params, (X,)


def of_tiny_outputs():
    """A wrong rescaling of outputs that are all small."""
    _, params, sym = relu_group()
    net = js.models.MLP((4, 2), "tanh")
    return lambda p, x: 1e-12 * net.apply(p, x), sym, params, (X,)


WRONG = {
    "tanh rescaled": lambda: rescaled("tanh"),
    "relu6 rescaled": lambda: rescaled("relu6"),
    "sigmoid rescaled": lambda: rescaled("sigmoid"),
    "gelu rescaled": lambda: rescaled("gelu"),
    "tanh rescaled behind a mask": behind_a_mask,
    "tanh rescaled, tiny outputs": of_tiny_outputs,
    "the reader is not rescaled": reader_left_out,
    "a wrong exponent": wrong_exponent,
    "units permuted across heads": across_heads,
    "statistics not permuted": statistic_left_out,
    "a statistic not shifted": unshifted_statistic,
}
