"""The pieces of a ReLU network on a line, found exactly: every breakpoint in closed form, one after another, no grid."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

WIDTH, LAYERS, INPUTS = 32, 6, 3
MOST = 2 * WIDTH * LAYERS
"""Pieces that a walk has room for."""
BIAS = 0.5
ENDS = -2.0, 2.0
"""Of the segment of a line, in units of its direction, a normal vector."""
FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where on each piece the network itself is asked; symmetric, so that a second difference can be taken."""
LIFT = 1e-3
"""By this the sawtooth stays away from 0 and 1, where pieces would meet."""
ROUNDING = 1e-9
"""A change of slope below this share of the largest slope is none."""


class Chain(NamedTuple):
    """A ReLU network with one output, of any width up to ``WIDTH`` and any depth up to ``LAYERS``: what is beyond them is there, but passed by."""

    kernels: Float[Array, "layers width width"]
    biases: Float[Array, "layers width"]
    out: Float[Array, " width"]
    units: Bool[Array, "layers width"]
    layers: Bool[Array, " layers"]


class Line(NamedTuple):
    """The points ``origin + t direction``, for t from ``first`` to ``last``."""

    origin: Float[Array, " width"]
    direction: Float[Array, " width"]
    first: Float[Array, ""]
    last: Float[Array, ""]


class Pieces(NamedTuple):
    """On ``[start, end]`` the output is ``value + slope t``; rows beyond the last piece are not ``valid``."""

    start: Float[Array, " most"]
    end: Float[Array, " most"]
    value: Float[Array, " most"]
    slope: Float[Array, " most"]
    valid: Bool[Array, " most"]


def random_chain(key: Array, width: Int[Array, ""], depth: Int[Array, ""]) -> tuple[Chain, Line]:
    """Kernels of He's initialiser, normal biases, and a random segment."""
    kernel_key, bias_key, out_key, line_key = jax.random.split(key, 4)
    place, layers = jnp.arange(WIDTH), jnp.arange(LAYERS) < depth
    units = (place < width) & layers[:, None]
    fan_in = jnp.where(jnp.arange(LAYERS) == 0, INPUTS, width)
    reads = place < fan_in[:, None]
    kernels = jax.random.normal(kernel_key, (LAYERS, WIDTH, WIDTH)) * jnp.sqrt(2 / fan_in)[:, None, None]
    kernels = kernels * reads[:, :, None] * units[:, None, :]
    biases = BIAS * jax.random.normal(bias_key, (LAYERS, WIDTH)) * units
    out = jax.random.normal(out_key, (WIDTH,)) / jnp.sqrt(width) * (place < width)
    ends = jax.random.normal(line_key, (2, WIDTH)) * (place < INPUTS)
    return Chain(kernels, biases, out, units, layers), Line(*ends, *map(jnp.array, ENDS))


def sawtooth(depth: Int[Array, ""]) -> tuple[Chain, Line]:
    """A tent composed with itself, two units a layer: 2^depth pieces on the unit interval (Telgarsky 2015, arXiv:1509.08101)."""
    steep = 2 * (1 - 2 * LIFT)
    read = jnp.array([[steep, steep], [-2 * steep, -2 * steep]])
    kernels = jnp.zeros((LAYERS, WIDTH, WIDTH)).at[1:, :2, :2].set(read).at[0, 0, :2].set(1.0)
    biases = jnp.zeros((LAYERS, WIDTH)).at[:, :2].set(jnp.array([LIFT, LIFT - 0.5])).at[0, :2].set(jnp.array([0, -0.5]))
    layers = jnp.arange(LAYERS) < depth
    units = (jnp.arange(WIDTH) < 2) & layers[:, None]
    out = jnp.zeros(WIDTH).at[:2].set(read[:, 0])
    along = jnp.zeros(WIDTH).at[0].set(1.0)
    return Chain(kernels, biases, out, units, layers), Line(
        0 * along, along, jnp.array(LIFT / 2), jnp.array(1 - LIFT / 2)
    )


def outputs(chain: Chain, line: Line, t: Float[Array, ""]) -> tuple[Float[Array, ""], Bool[Array, "layers width"]]:
    """The network at a point of the line, and which units are on."""

    def step(hidden: Array, layer: tuple[Array, ...]) -> tuple[Array, Array]:
        kernel, bias, present = layer
        z = hidden @ kernel + bias
        return jnp.where(present, jax.nn.relu(z), hidden), z > 0

    hidden, on = jax.lax.scan(step, line.origin + t * line.direction, (chain.kernels, chain.biases, chain.layers))
    return hidden @ chain.out, on


def walk(chain: Chain, line: Line) -> Pieces:
    """All pieces from the first point to the last.

    With a given set of units that are on, everything is affine in t. A unit that is on and falls, or off and rises, reaches 0 at a time that can be solved for; the
    earliest of them ends the piece, and that unit is switched. No tolerance is needed: a unit that was just switched moves away from 0.
    """

    def affine(on: Array) -> tuple[Array, Array, Array, Array]:
        def step(
            both: tuple[Array, Array], layer: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            kernel, bias, present, on = layer
            z, rate = both[0] @ kernel + bias, both[1] @ kernel
            return (jnp.where(present, on * z, both[0]), jnp.where(present, on * rate, both[1])), (z, rate)

        given = chain.kernels, chain.biases, chain.layers, on
        (value, slope), (z, rate) = jax.lax.scan(step, (line.origin, line.direction), given)
        return z, rate, value @ chain.out, slope @ chain.out

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Pieces]:
        start, on, going = carry
        z, rate, value, slope = affine(on)
        towards = chain.units & jnp.where(on, rate < 0, rate > 0)
        times = jnp.where(towards, jnp.maximum(-z / jnp.where(towards, rate, 1), start), jnp.inf)
        first = jnp.argmin(times)
        end = jnp.minimum(times.ravel()[first], line.last)
        switched = (on.ravel().at[first].set(~on.ravel()[first])).reshape(on.shape)
        return (end, switched, going & (end < line.last)), Pieces(start, end, value, slope, going)

    _, on = outputs(chain, line, line.first)
    return jax.lax.scan(step, (line.first, on & chain.units, jnp.array(True)), length=MOST)[1]


def crossed(chain: Chain, line: Line) -> Int[Array, ""]:
    """How many units of the first layer change on the segment, each by itself."""
    z = line.origin @ chain.kernels[0] + chain.biases[0]
    rate = line.direction @ chain.kernels[0]
    time = -z / jnp.where(rate == 0, 1, rate)
    return jnp.sum(chain.units[0] & (rate != 0) & (time > line.first) & (time < line.last))


def checked(chain: Chain, line: Line) -> dict[str, Array]:
    """The pieces, with the network itself asked on each of them, and where they meet."""
    found = walk(chain, line)
    length = found.end - found.start
    times = found.start[:, None] + length[:, None] * jnp.array(FRACTIONS)
    asked = jax.vmap(jax.vmap(lambda t: outputs(chain, line, t)[0]))(times)
    said = found.value[:, None] + found.slope[:, None] * times
    size = jnp.maximum(jnp.max(jnp.abs(jnp.where(found.valid[:, None], asked, 0))), 1.0)
    bend = asked + asked[:, ::-1] - 2 * asked[:, len(FRACTIONS) // 2][:, None]
    before, after = (jax.tree.map(lambda leaf, part=part: leaf[part], found) for part in (slice(0, -1), slice(1, None)))
    step = (after.value + after.slope * after.start) - (before.value + before.slope * before.end)
    bent = jnp.abs(after.slope - before.slope) > ROUNDING * jnp.max(jnp.where(found.valid, jnp.abs(found.slope), 0))

    def largest(values: Array, valid: Array) -> Array:
        return jnp.max(jnp.where(valid.reshape(-1, *[1] * (values.ndim - 1)), jnp.abs(values), 0)) / size

    return {
        "value_error": largest(asked - said, found.valid),
        "second_difference": largest(bend, found.valid),
        "jump": largest(step, after.valid),
        "regions": found.valid.sum(),
        "pieces": 1 + (bent & after.valid).sum(),
        "crossed": crossed(chain, line),
        "units": chain.units.sum(),
        "finished": ~found.valid[-1],
        "knot": jnp.where(found.valid, found.start, jnp.nan),
        "knot_value": jnp.where(found.valid, found.value + found.slope * found.start, jnp.nan),
        "last": line.last,
        "last_value": outputs(chain, line, line.last)[0],
    }
