"""Identities of activations, each checked over an ensemble: pReLU's derivative, the pieces of a ReLU network, batches, tanh as a sigmoid.

The exercises on activation functions in Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, chapter "Multilayer perceptrons". Pieces on a line: Montufar et al. 2014
(arXiv:1402.1869) for how many there can be, Hanin and Rolnick 2019 (arXiv:1901.09021) for how many there are at initialisation.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from jaxsym.studies.identities_maps import WAYS, error, groups, mapped, trained
from jaxsym.studies.identities_page import page
from jaxsym.studies.identities_pieces import checked, random_chain, sawtooth
from jaxsym.studies.identities_summary import summary
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys

POINTS = 64
STEP = 2.0**-20
"""Of one-sided differences: a power of two, so that they have no rounding."""
SHAPES = [(width, depth) for depth in (1, 2, 4, 6) for width in (8, 16, 32)]
TEETH = (1, 2, 3, 4, 5, 6)
SHOWN_SHAPE = SHAPES.index((16, 4))
BATCHES = (2, 4, 8, 16, 32, 64, 128, 256)
SMALL = 8
"""Rows of the minibatches whose gradients are averaged."""
INPUTS, UNITS = 4, 16


WIDEST = 64
"""Hidden layers of the networks whose groups are found."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    networks: int = 200
    """Of every kind."""
    rows: int = 1024
    """That are cut into minibatches; a multiple of 256."""
    steps: int = 1000
    """Of gradient descent."""
    hidden: str = "8; 8, 6; 6, 6, 6"
    """Hidden layers of the tanh networks that are written as sigmoid networks: widths with commas between, networks with semicolons."""
    seed: int = 0
    """Of networks, points and lines."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble, and rows that minibatches do not divide."""
        expect(self, networks=2, rows=2 * max(BATCHES), steps=1)
        if self.rows % max(BATCHES):
            msg = f"rows: got {self.rows}, expected a multiple of {max(BATCHES)}, the largest minibatch."
            raise ValueError(msg)
        if not all(2 <= width <= WIDEST for widths in self.kinds for width in widths):
            msg = f"hidden: got {self.hidden!r}, expected widths from 2 to {WIDEST}."
            raise ValueError(msg)

    @property
    def kinds(self) -> list[tuple[int, ...]]:
        """The hidden layers as numbers."""
        try:
            return list(dict.fromkeys(tuple(int(w) for w in each.split(",")) for each in self.hidden.split(";")))
        except ValueError as error:
            msg = f"hidden: got {self.hidden!r}, expected widths such as '8; 8, 6'."
            raise ValueError(msg) from error


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Every identity, in float64."""
    lines = len(SHAPES) * config.networks + len(TEETH)
    clock = Clock(progress, 3 * config.networks + lines + config.networks * len(WAYS) * config.steps)
    keys = network_keys(config.seed, config.networks)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        points = clock.ensemble("activations", _activations, keys, steps=1)
        pieces = _pieces(clock, keys)
        batches = clock.ensemble("minibatches", _batches(config.rows), keys, steps=1)
        kinds = {hidden: groups(hidden) for hidden in config.kinds}
        maps = clock.ensemble("tanh as sigmoid", mapped(kinds), keys, steps=1)
        steps = len(WAYS) * config.steps
        training = clock.ensemble("gradient descent", trained(config.steps, config.seed), keys, steps=steps)
    orders = [[str(sym.order) for sym in pair] for pair in kinds.values()]
    return _dataset(config, points, pieces, batches, maps, training, np.array(orders)).assign(clock.variables())


def prelu(slope: Float[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Flax's pReLU with a given slope."""
    return nn.PReLU().apply({"params": {"negative_slope": slope}}, x)


def _activations(key: Array) -> dict[str, Array]:
    """Of pReLU at random points and slopes, and at 0; tanh and sigmoid."""
    point_key, slope_key = jax.random.split(key)
    x = 3 * jax.random.normal(point_key, (POINTS,))
    slope = jax.random.uniform(slope_key, minval=-0.5, maxval=1.5)
    by_x = jax.vmap(jax.grad(prelu, 1), (None, 0))(slope, x)
    by_slope = jax.vmap(jax.grad(prelu, 0), (None, 0))(slope, x)
    zero = jnp.zeros(())
    right, left = ((prelu(slope, jnp.array(h)) - prelu(slope, zero)) / h for h in (STEP, -STEP))
    by_tanh = jax.vmap(jax.grad(jnp.tanh))(x)
    by_sigmoid = jax.vmap(jax.grad(lambda x: 2 * jax.nn.sigmoid(2 * x)))(x)
    return {
        "prelu_by_x": error(by_x, jnp.where(x > 0, 1, slope)),
        "prelu_by_slope": error(by_slope, jnp.minimum(x, 0)),
        "prelu_euler": error(x * by_x, prelu(slope, x)),
        "tanh_sigmoid": error(jnp.tanh(x) + 1, 2 * jax.nn.sigmoid(2 * x)),
        "tanh_sigmoid_by_x": error(by_tanh, by_sigmoid),
        "slope": slope,
        "prelu_at_zero": jax.grad(prelu, 1)(slope, zero),
        "leaky_relu_at_zero": jax.grad(jax.nn.leaky_relu)(zero, slope),
        "relu_at_zero": jax.grad(jax.nn.relu)(zero),
        "right": right,
        "left": left,
    }


def _pieces(clock: Clock, keys: Array) -> dict[str, Any]:
    """Random networks of all shapes, and sawtooths, in one program."""
    num = len(keys)
    width, depth = (np.repeat(axis, num) for axis in np.array(SHAPES).T)
    rows = np.concatenate([np.tile(np.arange(num), len(SHAPES)), np.zeros(len(TEETH), int)])
    widths = jnp.array(np.concatenate([width, np.full(len(TEETH), 2)]))
    depths = jnp.array(np.concatenate([depth, TEETH]))
    teeth = jnp.array(np.arange(len(rows)) >= len(width))

    def one(key: Array, width: Array, depth: Array, tooth: Array) -> dict[str, Array]:
        drawn, made = random_chain(key, width, depth), sawtooth(depth)
        return checked(*jax.tree.map(lambda a, b: jnp.where(tooth, a, b), made, drawn))

    found = clock.ensemble("pieces on a line", one, keys[rows], widths, depths, teeth, steps=1)
    cut = len(width)
    own = {name: values[:cut].reshape(len(SHAPES), num, *values.shape[1:]) for name, values in found.items()}
    return own | {"teeth": {name: values[cut:] for name, values in found.items()}}


def _batches(rows: int) -> Callable[[Array], dict[str, Array]]:
    """A layer with an elementwise nonlinearity, and with batch normalisation before it, on all rows and by minibatches."""
    norm = nn.BatchNorm(use_running_average=False, use_scale=False, use_bias=False)

    def normalized(z: Array) -> Array:
        variables = {"batch_stats": {name: jnp.zeros(UNITS) for name in ("mean", "var")}}
        return norm.apply(variables, z, mutable=["batch_stats"])[0]

    def one(key: Array) -> dict[str, Array]:
        input_key, kernel_key, out_key, target_key = jax.random.split(key, 4)
        x = jax.random.normal(input_key, (rows, INPUTS))
        kernel = jax.random.normal(kernel_key, (INPUTS, UNITS)) / INPUTS**0.5
        out = jax.random.normal(out_key, (UNITS,)) / UNITS**0.5
        targets = jax.random.normal(target_key, (rows,))
        z = x @ kernel

        def by_batches(act: Callable[[Array], Array], z: Array, size: int) -> Array:
            return jax.vmap(act)(z.reshape(-1, size, UNITS)).reshape(z.shape)

        def gradient(act: Callable[[Array], Array], x: Array, targets: Array) -> Array:
            return jax.grad(lambda kernel: jnp.mean((act(x @ kernel) @ out - targets) ** 2))(kernel)

        found: dict[str, list[Array]] = {}
        for name, act in (("elementwise", jnp.tanh), ("normalized", lambda z: jnp.tanh(normalized(z)))):
            whole, slopes = act(z), gradient(act, x, targets)
            cut = lambda leaf: leaf.reshape(-1, SMALL, *leaf.shape[1:])  # noqa: E731
            average = jax.vmap(lambda x, t, act=act: gradient(act, x, t))(cut(x), cut(targets)).mean(0)
            differences = [by_batches(act, z, size) - whole for size in BATCHES]
            other = jax.jacobian(lambda one, act=act: act(z[:SMALL].at[1].set(one))[0])(z[1])
            found[name] = [
                jnp.stack([jnp.sqrt(jnp.mean(each**2)) for each in differences]),
                jnp.linalg.norm(average - slopes) / jnp.linalg.norm(slopes),
                jnp.max(jnp.abs(other)),
            ]
        everything = normalized(z)
        standard = [jnp.sqrt(jnp.mean((by_batches(normalized, z, size) - everything) ** 2)) for size in BATCHES]
        return {
            "elementwise_difference": found["elementwise"][0],
            "normalized_difference": found["normalized"][0],
            "elementwise_gradient": found["elementwise"][1],
            "normalized_gradient": found["normalized"][1],
            "elementwise_other_row": found["elementwise"][2],
            "normalized_other_row": found["normalized"][2],
            "standardized_difference": jnp.stack(standard),
            "alone": jnp.max(jnp.abs(jax.vmap(normalized)(z[:32, None]))),
        }

    return one


ACTIVATIONS = {
    "slope": "slope of pReLU",
    "prelu_at_zero": "derivative of pReLU at 0 by automatic differentiation",
    "leaky_relu_at_zero": "derivative of leaky ReLU at 0 by automatic differentiation",
    "relu_at_zero": "derivative of ReLU at 0 by automatic differentiation",
    "right": "difference quotient of pReLU at 0 from the right",
    "left": "difference quotient of pReLU at 0 from the left",
}
ON_BATCHES = {
    "elementwise_difference": "root mean square difference of tanh by minibatches from tanh of all rows",
    "normalized_difference": "the same with batch normalisation before it",
    "standardized_difference": "root mean square difference of batch normalisation by minibatches from that of all rows",
}
ALONE = {
    "elementwise_gradient": "mean of the minibatches' gradients less the gradient on all rows, over its norm, tanh",
    "normalized_gradient": "the same with batch normalisation before it",
    "elementwise_other_row": "largest derivative of a row's outputs by another row of a batch of 8, tanh",
    "normalized_other_row": "the same with batch normalisation before it",
    "alone": "largest output of batch normalisation for batches of one row",
}
COUNTS = {
    "regions": "sets of units that are on, along the segment",
    "pieces": "affine pieces of the output on the segment",
    "crossed": "units of the first layer that change on the segment, each by itself",
    "finished": "whether the walk came to the end of the segment",
}


def _dataset(
    config: Config, points: Any, pieces: Any, batches: Any, maps: Any, training: Any, orders: np.ndarray
) -> xr.Dataset:
    names = [", ".join(map(str, hidden)) for hidden in config.kinds]
    errors = {
        "pReLU: derivative by x": points["prelu_by_x"],
        "pReLU: derivative by the slope": points["prelu_by_slope"],
        "pReLU: x f'(x) = f(x)": points["prelu_euler"],
        "ReLU network: the network on each piece": pieces["value_error"].max(0),
        "ReLU network: second differences within pieces": pieces["second_difference"].max(0),
        "ReLU network: pieces meet": pieces["jump"].max(0),
        "elementwise by minibatches": batches["elementwise_difference"].max(1),
        "elementwise: mean of minibatch gradients": batches["elementwise_gradient"],
        "tanh(x) + 1 = 2 sigmoid(2x)": points["tanh_sigmoid"],
        "its derivative": points["tanh_sigmoid_by_x"],
        **{f"tanh net as a sigmoid net, {name}": maps["map"][:, i] for i, name in enumerate(names)},
        "and back": maps["map_back"].max(1),
        "group carried along": maps["map_group"].max(1),
        "on one orbit": maps["map_orbit"],
        "gradient descent with the metric": training["apart"][:, -1].max(1),
    }
    num = config.networks
    shown = {name: pieces[name][SHOWN_SHAPE, 0] for name in ("knot", "knot_value", "last", "last_value")}
    known = np.isfinite(shown["knot"])
    knots, values = (np.append(shown[name][known], shown[last]) for name, last in (("knot", "last"), ("knot_value", "last_value")))  # fmt: skip
    variables: dict[str, Any] = {
        "error": (("identity", "network"), np.stack(list(errors.values())), {"long_name": "largest error, over the larger of 1 and the size of what is compared"}),
        **{name: (("network",), points[name], {"long_name": text}) for name, text in ACTIVATIONS.items()},
        **{name: (("network", "batch"), batches[name], {"long_name": text}) for name, text in ON_BATCHES.items()},
        **{name: (("network",), batches[name], {"long_name": text}) for name, text in ALONE.items()},
        **{name: (("shape", "network"), pieces[name], {"long_name": text}) for name, text in COUNTS.items()},
        "units": (("shape",), pieces["units"][:, 0], {"long_name": "hidden units"}),
        "tooth_pieces": (("tooth",), pieces["teeth"]["pieces"], {"long_name": "pieces of a sawtooth of two units a layer"}),
        "tooth_error": (("tooth",), np.maximum.reduce([pieces["teeth"][name] for name in ("value_error", "second_difference", "jump")]), {"long_name": "largest error of these pieces"}),
        "knot": (("knots",), knots, {"long_name": "where the pieces of one network begin, and the last one ends"}),
        "knot_value": (("knots",), values, {"long_name": "its output there"}),
        "order": (("hidden", "activation"), orders, {"long_name": "number of elements of the group, in digits"}),
        "training_loss": (("network", "way", "record"), training["training_loss"], {"long_name": "training loss along gradient descent"}),
        "apart": (("network", "way", "record"), training["apart"], {"long_name": "root mean square distance from the outputs of the tanh network, on other rows"}),
    }  # fmt: skip
    records = list(range(0, config.steps, max(1, config.steps // 50)))
    coords = {
        "identity": list(errors),
        "network": np.arange(num),
        "batch": list(BATCHES),
        "shape": [f"{depth} x {width}" for width, depth in SHAPES],
        "depth": ("shape", [depth for _, depth in SHAPES]),
        "width": ("shape", [width for width, _ in SHAPES]),
        "tooth": list(TEETH),
        "hidden": names,
        "activation": ["tanh", "sigmoid"],
        "way": list(WAYS),
        "record": [*records, config.steps],
    }
    return xr.Dataset(variables, coords=coords, attrs={"rows": config.rows, "shown": SHOWN_SHAPE})


STUDY = Study(
    title="identities of activations: pReLU at 0, pieces of ReLU networks, minibatches, tanh as a sigmoid",
    config=Config(),
    quick=Config(networks=16, rows=512, steps=200),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
