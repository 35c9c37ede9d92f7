"""Which degree fits a noisy cubic? Polynomials of 20 degrees by SGD and exactly, on few rows and on many.

The exercise on under- and overfitting of Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, chapter "Multilayer
perceptrons" (arXiv:2106.11342): its set-up is 100 training and 100 test rows, SGD at 0.01, ten rows a step, 400 epochs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float

from jaxsym.data import polynomial
from jaxsym.studies.polynomial_exact import (
    COEFFICIENTS,
    NOISE,
    WAYS,
    best_fits,
    factorials,
    features,
    hermite,
    reference,
    solved,
)
from jaxsym.studies.polynomial_page import page
from jaxsym.studies.polynomial_summary import summary
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys, numbers
from jaxsym.training import make_train

DEGREES = np.arange(1, 21)
FAR_DEGREES = np.arange(1, 41)
FEW_ROWS = (6, 10)
"""Training rows where the exact fit goes on to degree 40, past as many coefficients as rows."""

Columns = Callable[[np.ndarray], np.ndarray]
BASES: dict[str, Columns] = {
    "x^i / i!": lambda x: features(x, factorials(len(FAR_DEGREES) + 1)),
    "x^i": lambda x: features(x, np.ones(len(FAR_DEGREES) + 1)),
    "Hermite": lambda x: hermite(x, len(FAR_DEGREES) + 1),
}
CHAPTER_ROWS, BATCH, RATE = 100, 10, 0.01
RECORDS = 40
LIMIT_DEGREES = np.arange(1, 4)
LARGE, LARGE_DRAWS = 4000, 200
"""Rows on which the least expected loss is measured, and how many times."""

REFERENCES = 16
"""Networks whose exact weights are computed with 200 decimal places."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    networks: int = 128
    """Draws of the data, each with its own order of the batches; all degrees see the same."""
    epochs: int = 400
    """Of SGD; results are also taken after half of them. A multiple of 40."""
    sizes: str = "10,20,50,100,200,500"
    """Training rows; 10, 50, 100 and 500 must be among them."""
    rates: str = "0.01,0.001,1e-4,1e-5,1e-6,1e-8,1e-10,1e-12,1e-14"
    """Of SGD on powers that are not divided by i!; 0.01 must be the first."""
    test_rows: int = 100
    """Of each draw; 100 as in the chapter."""
    seed: int = 0
    """Of the data and the batches."""

    def __post_init__(self) -> None:
        """Refuse what makes no ensemble, no whole batches or no headline."""
        expect(self, networks=6, epochs=RECORDS, test_rows=2)
        if self.epochs % RECORDS:
            msg = f"epochs: got {self.epochs}, expected a multiple of {RECORDS}."
            raise ValueError(msg)
        sizes, rates = numbers("sizes", self.sizes, int), numbers("rates", self.rates, float)
        if (
            sizes != sorted(set(sizes))
            or not {10, 50, CHAPTER_ROWS, 500} <= set(sizes)
            or any(n % BATCH for n in sizes)
        ):
            msg = f"sizes: got {self.sizes}, expected multiples of {BATCH} in rising order with 10, 50, 100 and 500 among them."
            raise ValueError(msg)
        if rates[0] != RATE or rates != sorted(set(rates), reverse=True) or rates[-1] <= 0:
            msg = f"rates: got {self.rates}, expected positive numbers in falling order, the first {RATE:g}."
            raise ValueError(msg)


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Train every degree on every number of rows, and solve for the same exactly."""
    sizes, rates = numbers("sizes", config.sizes, int), numbers("rates", config.rates, float)
    runs = {n: _runs(n, rates) for n in sizes}
    total = sum(config.networks * len(DEGREES) * len(runs[n]) * config.epochs * n // BATCH for n in sizes)
    clock = Clock(progress, total)
    keys = network_keys(config.seed, config.networks)
    drawn = jax.vmap(lambda key: _drawn(key, max(sizes), config.test_rows))(keys)
    sgd = {n: _trained(clock, keys, drawn, n, config.epochs, runs[n]) for n in sizes}
    clock.networks *= len(DEGREES)
    x, y, test_x, test_y = (np.asarray(leaf, np.float64) for leaf in drawn)
    progress("exact fits", total, total)

    def fits(columns: Columns, size: int) -> dict[str, np.ndarray]:
        return _exact(columns(x[:, :size]), y[:, :size], columns(test_x), test_y)

    exact = [fits(lambda x: features(x, factorials(len(DEGREES) + 1)), n) for n in sizes]
    far = [_stacked([fits(columns, n) for n in FEW_ROWS]) for columns in BASES.values()]
    gaps = [
        _training_loss(features(x[:, :n], factorials(len(DEGREES) + 1)), y[:, :n], sgd[n]["weights"][0])
        - best["train"].T
        for n, best in zip(sizes, exact, strict=True)
    ]
    largest = np.stack([np.abs(x[:, :n]).max(axis=1) for n in sizes])
    progress("ways of solving", total, total)
    compared = _compared(x[:REFERENCES, :CHAPTER_ROWS], y[:REFERENCES, :CHAPTER_ROWS])
    return _dataset(
        config, sgd, _stacked(exact), _stacked(far), compared, _limits(config.seed), largest, np.stack(gaps)
    ).assign(clock.variables())


def _runs(size: int, rates: list[float]) -> list[tuple[bool, float]]:
    """With 1/i! at the chapter's rate and without; on the chapter's number of rows, without at the other rates too."""
    return [(True, RATE), *((False, rate) for rate in (rates if size == CHAPTER_ROWS else rates[:1]))]


def _drawn(key: Array, num: int, test: int) -> tuple[Array, Array, Array, Array]:
    """Inputs and targets for training and for the test."""
    rows = polynomial(jax.random.fold_in(key, 1), num, COEFFICIENTS, NOISE)
    others = polynomial(jax.random.fold_in(key, 2), test, COEFFICIENTS, NOISE)
    return rows.inputs[:, 0], rows.targets, others.inputs[:, 0], others.targets


def _trained(
    clock: Clock, keys: Array, drawn: tuple[Array, ...], size: int, epochs: int, runs: list[tuple[bool, float]]
) -> dict[str, np.ndarray]:
    """Training and test loss ``[run, network, degree, record]`` of SGD from zero, and its weights; all degrees see the same batches."""
    steps = epochs * size // BATCH

    def one(
        key: Array, factorial: Array, rate: Array, x: Array, y: Array, test_x: Array, test_y: Array
    ) -> dict[str, Array]:
        num = len(DEGREES) + 1
        divisors = jnp.where(factorial, jnp.asarray(factorials(num), x.dtype), 1)
        train = features(x[:size], divisors), y[:size]
        test = features(test_x, divisors), test_y

        def fitted(degree: Array) -> dict[str, Array]:
            used = jnp.arange(num) <= degree

            def loss(weights: Array, rows: tuple[Array, Array], key: Array | None = None) -> Float[Array, ""]:
                del key
                return jnp.mean((rows[0] @ (weights * used) - rows[1]) ** 2)

            sgd = make_train(
                lambda key: jnp.zeros(num),
                loss,
                optax.inject_hyperparams(optax.sgd)(learning_rate=RATE),
                train,
                steps=steps,
                batch_size=BATCH,
                record_every=steps // RECORDS,
                probes={
                    "train": lambda seen: loss(seen.params, train),
                    "test": lambda seen: loss(seen.params, test),
                },
            )
            params, history = sgd(key, learning_rate=rate)
            return {"train": history["train"], "test": history["test"], "weights": params * used}

        return jax.vmap(fitted)(jnp.array(DEGREES))

    num = len(keys)
    factorial, rate = (jnp.repeat(jnp.array(values), num) for values in zip(*runs, strict=True))
    repeated = [jnp.tile(leaf, (len(runs), 1)) for leaf in drawn]
    label = f"SGD on {size} rows"
    found = clock.ensemble(
        label, one, jnp.tile(keys, len(runs)), factorial, rate, *repeated, steps=steps * len(DEGREES)
    )
    return {name: leaf.reshape(len(runs), num, *leaf.shape[1:]) for name, leaf in found.items()}


def _exact(columns: np.ndarray, y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> dict[str, np.ndarray]:
    """Losses ``[degree, network]`` of the exact fits, of degree 1 and up, from features ``[network, row, degree]``."""
    weights = best_fits(columns, y, range(1, columns.shape[-1]))
    return {
        part: np.mean((np.einsum("rnp,drp->drn", rows, weights) - targets) ** 2, axis=-1)
        for part, rows, targets in (("train", columns, y), ("test", test, test_y))
    }


def _training_loss(columns: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, "network degree"]:
    return np.mean((np.einsum("rnp,rdp->rdn", columns, weights.astype(float)) - y[:, None]) ** 2, axis=-1)


def _stacked(results: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {part: np.stack([result[part] for result in results]) for part in results[0]}


def _limits(seed: int) -> Float[np.ndarray, "limit draws"]:
    """Training loss of the exact fits of so many rows that it is nearly the least expected loss."""
    rows = jax.vmap(lambda key: polynomial(jax.random.fold_in(key, 3), LARGE, COEFFICIENTS, NOISE))(
        network_keys(seed, LARGE_DRAWS)
    )
    x, y = (np.asarray(leaf, np.float64) for leaf in (rows.inputs[..., 0], rows.targets))
    columns = features(x, factorials(len(LIMIT_DEGREES) + 1))
    return _exact(columns, y, columns, y)["train"]


def _compared(x: Float[np.ndarray, "reference N"], y: Float[np.ndarray, "reference N"]) -> dict[str, np.ndarray]:
    """Relative errors of the weights, and the excess of the training loss, ``[scaling, reference, degree, way]``.

    The excess is that over the least loss, ``|A (w - w*)|^2 / N``, in units of it.
    """
    num = len(DEGREES) + 1
    error, excess = np.zeros((2, 2, len(x), len(DEGREES), len(WAYS)))
    for network in range(len(x)):
        best = reference(x[network], y[network], DEGREES.tolist())
        for scaling, divisors in enumerate((factorials(num), np.ones(num))):
            columns = features(x[network], divisors)
            for place, degree in enumerate(DEGREES):
                used = columns[:, : degree + 1]
                wanted = best[place] * divisors[: degree + 1]
                apart = solved(used, y[network]) - wanted
                least = np.mean((used @ wanted - y[network]) ** 2)
                error[scaling, network, place] = np.linalg.norm(apart, axis=-1) / np.linalg.norm(wanted)
                excess[scaling, network, place] = np.mean((apart @ used.T) ** 2, axis=-1) / least
    return {"error": error, "excess": excess}


def _dataset(
    config: Config,
    sgd: dict[int, dict[str, np.ndarray]],
    exact: dict[str, np.ndarray],
    far: dict[str, np.ndarray],
    compared: dict[str, np.ndarray],
    limits: np.ndarray,
    largest: np.ndarray,
    gaps: np.ndarray,
) -> xr.Dataset:
    """Name the dimensions; what is not finite stays so."""
    chapter = sgd[CHAPTER_ROWS]
    ends = [RECORDS // 2, RECORDS]
    variables: dict[str, tuple[tuple[str, ...], Any, str]] = {}
    for part, text in (("train", "training"), ("test", "test")):
        both = np.stack([results[part][:2, :, :, ends] for results in sgd.values()])
        variables |= {
            f"sgd_{part}": (
                ("size", "scaling", "network", "degree", "epoch"),
                both,
                f"{text} loss of SGD at {RATE:g}, not finite where it has diverged",
            ),
            f"rate_{part}": (
                ("rate", "network", "degree"),
                chapter[part][1:, ..., -1],
                f"{text} loss of SGD on {CHAPTER_ROWS} rows of powers that are not divided by i!",
            ),
            f"curve_{part}": (
                ("network", "degree", "record"),
                chapter[part][0],
                f"{text} loss along SGD on {CHAPTER_ROWS} rows of powers divided by i!",
            ),
            f"exact_{part}": (("size", "degree", "network"), exact[part], f"{text} loss of the exact fit"),
            f"far_{part}": (
                ("basis", "few", "far", "network"),
                far[part],
                f"{text} loss of the exact fit of few rows, of the shortest weights where many fit",
            ),
        }
    variables |= {
        "weight_error": (
            ("scaling", "reference", "degree", "way"),
            compared["error"],
            "distance of the solved weights from those with 200 decimal places, relative to their norm",
        ),
        "fit_excess": (
            ("scaling", "reference", "degree", "way"),
            compared["excess"],
            "excess over the least training loss, in units of it",
        ),
        "limit_loss": (("limit", "draw"), limits, f"training loss of the exact fit on {LARGE} rows"),
        "noise_floor": ((), NOISE**2, "variance of the noise"),
        "exact_gap": (
            ("size", "network", "degree"),
            gaps,
            "training loss of SGD with 1/i!, taken in float64, over that of the exact fit; not finite where SGD has diverged",
        ),
        "limit_rows": ((), LARGE, "rows on which the least expected loss is measured"),
        "test_rows": ((), config.test_rows, "rows of each test"),
        "largest_input": (("size", "network"), largest, "largest |x| of the training rows"),
        "start_loss": (
            ("network",),
            chapter["train"][0, :, 0, 0],
            f"training loss of zero weights on {CHAPTER_ROWS} rows",
        ),
    }
    coords = {
        "size": list(sgd),
        "scaling": ["x^i / i!", "x^i"],
        "degree": DEGREES,
        "epoch": [config.epochs // 2, config.epochs],
        "rate": numbers("rates", config.rates, float),
        "record": np.arange(RECORDS + 1) * (config.epochs // RECORDS),
        "basis": list(BASES),
        "few": list(FEW_ROWS),
        "far": FAR_DEGREES,
        "way": list(WAYS),
        "limit": LIMIT_DEGREES,
    }
    return xr.Dataset(
        {name: (dims, values, {"long_name": text}) for name, (dims, values, text) in variables.items()}, coords=coords
    )


STUDY = Study(
    title="under- and overfitting: polynomials of 20 degrees by SGD and exactly, on few rows and on many",
    config=Config(),
    quick=Config(networks=16, sizes="10,50,100,500", rates="0.01,0.001,1e-4,1e-6,1e-10"),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
