"""What weight decay is worth: L1, L2 and both on sparse linear regression, at all strengths, over hundreds of draws.

The exercises on weight decay of Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, chapter "Multilayer perceptrons"
(arXiv:2106.11342). The training is the accelerated proximal gradient of Beck and Teboulle 2009 (FISTA,
doi:10.1137/080716542), so that weights that L1 makes zero are zero.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, PyTree

from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys
from jaxsym.studies.weight_decay_page import page
from jaxsym.studies.weight_decay_summary import FEW_ROWS, summary
from jaxsym.training import make_train

FEATURES, TRUE = 100, 5
PENALTIES = {"L1": 1.0, "L2": 0.0, "both": 0.5}
"""The share of L1 in the penalty ``lambda (share |w|_1 + (1 - share) |w|^2 / 2)``."""

STRENGTHS = np.array([0.0, *10.0 ** np.linspace(-3, 1, 13)])
SMALL = 1e-3
"""A weight smaller than this counts as zero."""

PAIR_STEPS = 500
PAIR_HESSIAN, PAIR_CENTRE = ((1.0, 0.4), (0.4, 0.7)), (0.5, 1.5)
"""The loss ``(w - c)' H (w - c) / 2`` of the first pair, which is drawn; the others are random."""

FRACTIONS = np.linspace(0, 1, 41)
"""Strengths for two weights, of the least at which L1 leaves nothing."""

SHAPES = ((3, 5), (20, 20), (40, 7))
"""Of the random matrices whose norm is written as a trace."""

MATRICES = 64


class Proximal(NamedTuple):
    """Where the last step was before the extrapolation, and how many there were."""

    last: PyTree
    number: Array


def proximal(learning_rate: Any, threshold: Any = 0.0) -> optax.GradientTransformation:
    """Gradient descent on the loss, soft-thresholding for ``threshold |w|_1``, and the momentum of FISTA.

    ``x' = S(y - rate * gradient(y), rate * threshold)``, ``y' = x' + k / (k + 3) (x' - x)``, where S moves every entry
    towards 0 and stops there. The parameters are y; k starts again from 0 where the momentum points uphill.
    *Source:* Beck and Teboulle 2009; O'Donoghue and Candès 2015 (arXiv:1204.3982) for the restarts.
    """

    def init(params: PyTree) -> Proximal:
        return Proximal(params, jnp.zeros(()))

    def update(grads: PyTree, state: Proximal, params: PyTree) -> tuple[PyTree, Proximal]:
        def stepped(at: Array, grad: Array) -> Array:
            moved = at - learning_rate * grad
            return jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - learning_rate * threshold, 0)

        now = jax.tree.map(stepped, params, grads)
        moves = jax.tree.map(jnp.subtract, now, state.last)
        uphill = optax.tree.vdot(jax.tree.map(jnp.subtract, params, now), moves) > 0
        number = jnp.where(uphill, 0, state.number)
        updates = jax.tree.map(lambda x, move, at: x + number / (number + 3) * move - at, now, moves, params)
        return updates, Proximal(now, number + 1)

    return optax.GradientTransformation(init, update)


LOUDEST = 1e6
"""Standard deviation of the noise, at most."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    draws: int = 200
    """Of data and true weights; every penalty and strength sees the same."""
    sizes: str = "20,50,100,200"
    """Training rows; the first is 20."""
    validation: int = 50
    """Rows by which the strength is chosen."""
    noise: float = 0.1
    """Standard deviation of what is added to the targets."""
    steps: int = 3000
    """Of training."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        """Refuse what makes no ensemble or no headline."""
        expect(self, draws=2, validation=2, steps=10)
        try:
            sizes = [int(part) for part in self.sizes.split(",")]
        except ValueError:
            sizes = []
        if not sizes or sizes[0] != FEW_ROWS or sizes != sorted(set(sizes)):
            msg = f"sizes: got {self.sizes!r}, expected numbers in rising order, separated by commas, the first {FEW_ROWS}."
            raise ValueError(msg)
        if not 0 < self.noise <= LOUDEST:
            msg = f"noise: got {self.noise}, expected a positive number, at most {LOUDEST:g}."
            raise ValueError(msg)


class Draws(NamedTuple):
    """Inputs ``[draw, row, feature]``, targets ``[draw, row]`` and the true weights ``[draw, feature]``, of NumPy or JAX."""

    inputs: Any
    targets: Any
    weights: Any


def drawn(seed: int, num: int, rows: int, noise: float) -> Draws:
    """Normal inputs; the first five weights are between 0.5 and 1.5 in size, the others 0."""

    def one(key: Array) -> Draws:
        x_key, sign_key, size_key, noise_key = jax.random.split(key, 4)
        x = jax.random.normal(x_key, (rows, FEATURES))
        sizes = jax.random.uniform(size_key, (TRUE,), minval=0.5, maxval=1.5)
        weights = jnp.zeros(FEATURES).at[:TRUE].set(sizes * jax.random.rademacher(sign_key, (TRUE,)))
        return Draws(x, x @ weights + noise * jax.random.normal(noise_key, (rows,)), weights)

    with jax.default_matmul_precision("highest"):
        return Draws(*(np.asarray(leaf, np.float64) for leaf in jax.vmap(one)(network_keys(seed, num))))


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Train at every strength of every penalty; then two weights, and the identity of the norm."""
    sizes = [int(part) for part in config.sizes.split(",")]
    each = len(PENALTIES) * len(STRENGTHS)
    pairs = config.draws * 2 * len(FRACTIONS)
    clock = Clock(progress, len(sizes) * config.draws * each * config.steps + pairs * PAIR_STEPS)
    draws = drawn(config.seed, config.draws, sizes[-1] + config.validation, config.noise)
    quadratics = _quadratics(config)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        trained = {size: _trained(clock, draws, size, config.steps) for size in sizes}
        pair = _pairs(clock, *quadratics)
    clock.networks = len(sizes) * config.draws * each + pairs
    found = {size: measured(weights, draws, size, sizes[-1], config.noise) for size, weights in trained.items()}
    return _dataset(config, draws, found, pair, _traces(config.seed)).assign(clock.variables())


def _trained(clock: Clock, draws: Draws, size: int, steps: int) -> Float[np.ndarray, "draw penalty strength feature"]:
    """The weights at the end, from zero; all networks of one draw share its rows."""
    x, y = draws.inputs[:, :size], draws.targets[:, :size]
    gram = np.einsum("rnp,rmp->rnm", x, x) if size < FEATURES else np.einsum("rnp,rnq->rpq", x, x)
    curvature = np.linalg.eigvalsh(gram / size)[:, -1]

    def one(x: Array, y: Array, curvature: Array) -> Array:
        def loss(weights: Array, rows: tuple[Array, Array], key: Array, decay: Array) -> Float[Array, ""]:
            del key
            return jnp.mean((rows[0] @ weights - rows[1]) ** 2) / 2 + decay / 2 * weights @ weights

        train = make_train(
            lambda key: jnp.zeros(FEATURES),
            loss,
            optax.inject_hyperparams(proximal)(learning_rate=1.0, threshold=0.0),
            (x, y),
            steps=steps,
            record_every=steps,
        )

        def fitted(share: Array, strength: Array) -> Array:
            decay = (1 - share) * strength
            rate = 1 / (curvature + decay)
            key = jax.random.key(0)  # nothing is drawn
            return train(key, learning_rate=rate, threshold=share * strength, decay=decay).params

        by_strength = jax.vmap(fitted, in_axes=(None, 0))
        shares = jnp.array(list(PENALTIES.values()))
        return jax.vmap(by_strength, in_axes=(0, None))(shares, jnp.array(STRENGTHS))

    networks = len(PENALTIES) * len(STRENGTHS)
    return np.asarray(clock.ensemble(f"{size} rows", one, x, y, curvature, steps=steps * networks))


def measured(
    weights: Float[np.ndarray, "draw penalty strength feature"], draws: Draws, size: int, first: int, noise: float
) -> dict[str, np.ndarray]:
    """Errors, zeros, norms and how far from the minimum, all in float64; validation rows are from ``first`` on.

    The test error is exact: for normal inputs the expected squared error is ``|w - w*|^2 + noise^2``.
    """

    def apart(rows: slice) -> np.ndarray:
        predicted = np.einsum("rnp,rksp->rksn", draws.inputs[:, rows], weights)
        return predicted - draws.targets[:, None, None, rows]

    x, y = draws.inputs[:, :size], draws.targets[:, :size]
    shares = np.array(list(PENALTIES.values()))[:, None, None]
    decay, threshold = (1 - shares) * STRENGTHS[:, None], shares * STRENGTHS[:, None]
    residuals = apart(slice(0, size))
    slope = np.einsum("rnp,rksn->rksp", x, residuals) / size + decay * weights
    off = np.where(weights != 0, np.abs(slope + threshold * np.sign(weights)), np.maximum(np.abs(slope) - threshold, 0))
    scale = np.abs(np.einsum("rnp,rn->rp", x, y) / size).max(axis=-1)
    ridge = closed_ridge(x, y, STRENGTHS)
    from_ridge = weights[:, list(PENALTIES).index("L2")] - ridge
    return {
        "train_error": np.mean(residuals**2, axis=-1),
        "validation_error": np.mean(apart(slice(first, None)) ** 2, axis=-1),
        "test_error": np.sum((weights - draws.weights[:, None, None]) ** 2, axis=-1) + noise**2,
        "zeros": np.mean(np.abs(weights) < SMALL, axis=-1),
        "true_zeros": np.mean(np.abs(weights[..., :TRUE]) < SMALL, axis=-1),
        "noise_norm": np.linalg.norm(weights[..., TRUE:], axis=-1),
        "residual": off.max(axis=-1) / scale[:, None, None],
        "ridge_error": np.linalg.norm(from_ridge, axis=-1) / np.linalg.norm(ridge, axis=-1),
        "path": weights[0],
    }


def closed_ridge(
    x: Float[np.ndarray, "draw N P"], y: Float[np.ndarray, "draw N"], strengths: Sequence[float] | np.ndarray
) -> Float[np.ndarray, "draw strength P"]:
    """``V s / (s^2 + N lambda) U' y`` from the singular values of the inputs; without decay the shortest of the best weights."""
    left, values, right = np.linalg.svd(x, full_matrices=False)
    along = np.einsum("rnk,rn->rk", left, y)
    shrunk = [values / (values**2 + x.shape[1] * strength) * along for strength in strengths]
    return np.einsum("srk,rkp->rsp", np.stack(shrunk), right)


def _pairs(clock: Clock, hessians: np.ndarray, centres: np.ndarray) -> dict[str, np.ndarray]:
    """Two weights: where L1 and L2 lead the minimum of a quadratic, as they grow."""

    def one(hessian: Array, centre: Array) -> Array:
        most = jnp.abs(hessian @ centre).max()

        def loss(weights: Array, rows: None, key: Array, decay: Array) -> Float[Array, ""]:
            del rows, key
            apart = weights - centre
            return apart @ hessian @ apart / 2 + decay / 2 * weights @ weights

        train = make_train(
            lambda key: jnp.zeros(2),
            loss,
            optax.inject_hyperparams(proximal)(learning_rate=1.0, threshold=0.0),
            steps=PAIR_STEPS,
            record_every=PAIR_STEPS,
        )

        def fitted(share: Array, fraction: Array) -> Array:
            decay = (1 - share) * fraction * most
            rate = 1 / (jnp.trace(hessian) + decay)
            return train(jax.random.key(0), learning_rate=rate, threshold=share * fraction * most, decay=decay).params

        by_fraction = jax.vmap(fitted, in_axes=(None, 0))
        return jax.vmap(by_fraction, in_axes=(0, None))(jnp.array([1.0, 0.0]), jnp.array(FRACTIONS))

    networks = 2 * len(FRACTIONS)
    weights = clock.ensemble("two weights", one, hessians, centres, steps=PAIR_STEPS * networks)
    return {"hessian": hessians, "centre": centres, "weights": np.asarray(weights)}


def _quadratics(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Hessians with eigenvalues between 0.1 and 1 in random directions, and normal minima; the first is fixed."""

    def one(key: Array) -> tuple[Array, Array]:
        turn_key, value_key, centre_key = jax.random.split(jax.random.fold_in(key, 1), 3)
        angle = jax.random.uniform(turn_key, maxval=jnp.pi)
        turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        values = jax.random.uniform(value_key, (2,), minval=0.1)
        return turn * values @ turn.T, jax.random.normal(centre_key, (2,))

    hessians, centres = (np.array(leaf, float) for leaf in jax.vmap(one)(network_keys(config.seed, config.draws)))
    hessians[0], centres[0] = PAIR_HESSIAN, PAIR_CENTRE
    return hessians, centres


def _traces(seed: int) -> Float[np.ndarray, "shape matrix identity"]:
    """Relative errors of ``|W|_F^2 = tr W'W = sum of squared singular values``, and of ``d |W|_F^2 / 2 = W``, in float64."""

    def one(key: Array, shape: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
        matrix = jax.random.normal(key, shape)
        slope = jax.grad(lambda m: jnp.trace(m.T @ m) / 2)(matrix)
        return matrix, jnp.sum(matrix**2), jnp.trace(matrix.T @ matrix), jnp.abs(slope - matrix).max()

    errors = []
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for index, shape in enumerate(SHAPES):
            keys = network_keys(seed + index, MATRICES)
            results = jax.vmap(lambda key, shape=shape: one(key, shape))(keys)
            matrices, square, trace, slope = (np.asarray(leaf) for leaf in results)
            values = np.sum(np.linalg.svd(matrices, compute_uv=False) ** 2, axis=-1)
            errors.append(np.stack([np.abs(trace / square - 1), np.abs(values / square - 1), slope], axis=-1))
    return np.stack(errors)


TEXTS = {
    "train_error": "mean squared error on the training rows, without the penalty",
    "validation_error": "mean squared error on the validation rows",
    "test_error": "expected squared error of a new row",
    "zeros": "share of the weights that are zero",
    "true_zeros": "share of the true features whose weight is zero",
    "noise_norm": "norm of the weights of the features that have no part in the targets",
    "residual": "largest violation of the conditions of a minimum, of the largest slope at zero",
}


def _dataset(
    config: Config,
    draws: Draws,
    found: dict[int, dict[str, np.ndarray]],
    pair: dict[str, np.ndarray],
    traces: np.ndarray,
) -> xr.Dataset:
    dims = ("size", "draw", "penalty", "strength")
    variables: dict[str, tuple[tuple[str, ...], Any, str]] = {
        key: (dims, np.stack([results[key] for results in found.values()]), text) for key, text in TEXTS.items()
    }
    variables |= {
        "ridge_error": (
            ("size", "draw", "strength"),
            np.stack([results["ridge_error"] for results in found.values()]),
            "distance of the weights with L2 from the closed form, relative to its norm",
        ),
        "path": (
            ("size", "penalty", "strength", "feature"),
            np.stack([results["path"] for results in found.values()]),
            "weights of the first draw",
        ),
        "true_weights": (("draw", "feature"), draws.weights, "weights that made the targets"),
        "pair_hessian": (("draw", "coordinate", "other"), pair["hessian"], "curvature of the loss of two weights"),
        "pair_centre": (("draw", "coordinate"), pair["centre"], "its minimum without a penalty"),
        "pair": (("draw", "pair_penalty", "fraction", "coordinate"), pair["weights"], "its minimum with a penalty"),
        "trace_error": (("shape", "matrix", "identity"), traces, "relative error of an identity of the norm"),
        "noise_variance": ((), config.noise**2, "variance of the noise"),
        "validation_rows": ((), config.validation, "rows by which the strength is chosen"),
    }
    coords = {
        "size": list(found),
        "penalty": list(PENALTIES),
        "strength": STRENGTHS,
        "pair_penalty": ["L1", "L2"],
        "fraction": FRACTIONS,
        "shape": [f"{rows} by {columns}" for rows, columns in SHAPES],
        "identity": ["trace", "singular values", "gradient"],
    }
    return xr.Dataset(
        {name: (dims, values, {"long_name": text}) for name, (dims, values, text) in variables.items()}, coords=coords
    )


STUDY = Study(
    title="weight decay: L1, L2 and both on sparse regression, chosen by validation and in hindsight",
    config=Config(),
    quick=Config(draws=32, sizes="20,50,200", steps=1500),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
