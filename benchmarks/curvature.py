"""Curvature of one network and of many: ours against its peers, ``python benchmarks/curvature.py [--quick]``.

A tanh network 20-64-64-10 (6154 parameters) on 1024 rows in float32, the same weights and data for all: a gradient, a Hessian-vector product, the five
largest eigenvalues, and a spectral density by stochastic Lanczos quadrature (10 starts of 50 steps); and the full spectra of 256 small networks. With one
thread and with two. Peers: matfree used by hand, curvlinops, hessian-eigenthings and PyHessian (extra ``bench``).

JAX and torch run in processes of their own, one works at a time, the contenders take turns, and medians are compared; what comes before the first
result is timed apart. Eigenvalues are held against a dense decomposition in float64. How many steps a method takes for them is its own affair: it is
given the fewest of a few efforts with which all five are within the tolerance, and a method that never is says so.

Exits with 1 when a goal is missed; with ``--quick`` nothing is judged.
"""

import argparse
import importlib.util
import itertools
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import turns
from rich.console import Console
from rich.table import Table

WIDTHS = (20, 64, 64, 10)
ROWS = 1024
SMALL, SMALL_ROWS, NETWORKS = (4, 8, 3), 128, 256
ALONE = 8  # networks that those who take them one by one take
TOP, TOLERANCE = 5, 1e-3  # eigenvalues, and their relative error
SAMPLES, STEPS = 10, 50  # of the density
EFFORTS = (10, 15, 20, 30, 40, 60, 100, 150, 200)
TASKS = ("gradient", "hvp", "top", "density", "ensemble")
TITLES = {
    "gradient": "gradient",
    "hvp": "Hessian-vector product",
    "top": f"{TOP} largest eigenvalues, all within {TOLERANCE:g}",
    "density": f"spectral density, {SAMPLES} starts of {STEPS} steps",
    "ensemble": f"full spectra of {NETWORKS} networks {'-'.join(map(str, SMALL))}",
}
OURS, BOTH, MATFREE, JAX = "jaxsym", "jaxsym, copies too", "matfree by hand", "JAX by hand"
CURVLINOPS, EIGENTHINGS, PYHESSIAN, TORCH = "curvlinops", "hessian-eigenthings", "PyHessian", "torch by hand"
MODULES = {CURVLINOPS: "curvlinops", EIGENTHINGS: "hessian_eigenthings", PYHESSIAN: "pyhessian"}
CONTENDERS = {
    "gradient": {"jax": (JAX,), "torch": (TORCH,)},
    "hvp": {"jax": (OURS, JAX), "torch": (CURVLINOPS, EIGENTHINGS, PYHESSIAN)},
    "top": {"jax": (OURS, BOTH, MATFREE), "torch": (CURVLINOPS, EIGENTHINGS, PYHESSIAN)},
    "density": {"jax": (OURS, MATFREE), "torch": (CURVLINOPS, EIGENTHINGS, PYHESSIAN)},
    "ensemble": {"jax": (OURS, JAX), "torch": (CURVLINOPS, TORCH)},
}
CRASHES = {(PYHESSIAN, "density"): "its density calls torch.eig, which torch has no more"}

Kernels = list[tuple[np.ndarray, np.ndarray]]


# What is computed.


def weights(widths: tuple[int, ...], networks: int, seed: int) -> list[Kernels]:
    """Kernels ``[in, out]`` and biases of each network."""
    random = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(widths))

    def one() -> Kernels:
        return [
            (
                (random.standard_normal((a, b)) * 1.5 / a**0.5).astype(np.float32),
                (0.1 * random.standard_normal(b)).astype(np.float32),
            )
            for a, b in pairs
        ]

    return [one() for _ in range(networks)]


def data(widths: tuple[int, ...], rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and the classes that a random linear teacher gives them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, widths[0])).astype(np.float32)
    return x, (x @ random.standard_normal((widths[0], widths[-1]))).argmax(axis=1)


def jax_loss(params: Any, x: Any, labels: Any) -> Any:
    import jax
    import optax

    for kernel, bias in params[:-1]:
        x = jax.numpy.tanh(x @ kernel + bias)
    kernel, bias = params[-1]
    return optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias, labels).mean()


def exact(small: bool) -> np.ndarray:
    """Eigenvalues by a dense decomposition in float64, ascending; ``[networks, P]`` of the small ones."""
    import jax

    from jaxsym.curvature import hessian

    widths, rows, count = (SMALL, SMALL_ROWS, ALONE) if small else (WIDTHS, ROWS, 1)
    x, labels = data(widths, rows, 0)
    found = []
    for params in weights(widths, count, 1):
        with jax.enable_x64(True):
            wide = x.astype(np.float64)
        found.append(np.linalg.eigvalsh(hessian(lambda p: jax_loss(p, wide, labels), params)))  # noqa: B023
    return np.stack(found)


# In the process of a side.


class Ready(NamedTuple):
    """``run()`` does the work and waits for it; ``values(run())`` is compared; so many networks are taken."""

    run: Callable[[], Any]
    values: Callable[[Any], np.ndarray]
    networks: int = 1


def begin(threads: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    pool = (
        1 if threads == 1 else 2 * threads
    )  # of XLA, as js.use_all_cores has it: with fewer ours decomposes in one thread
    os.environ |= {"JAX_NUM_CPU_DEVICES": str(threads), "NPROC": str(pool), "OPENBLAS_NUM_THREADS": "1"}
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def with_jax(task: str, name: str, effort: int) -> Ready:
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree
    from matfree import decomp, eig

    import jaxsym as js

    wait = jax.block_until_ready
    if task == "ensemble":
        x, labels = (jnp.asarray(part) for part in data(SMALL, SMALL_ROWS, 0))
        many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights(SMALL, NETWORKS, 1))

        def own(params: Any) -> Any:
            return js.curvature.spectrum(lambda p: jax_loss(p, x, labels), params).eigenvalues

        def by_hand(params: Any) -> Any:
            flat, back = ravel_pytree(params)
            return jnp.linalg.eigvalsh(jax.hessian(lambda flat: jax_loss(back(flat), x, labels))(flat))

        run = js.parallel(own) if name == OURS else jax.jit(jax.vmap(by_hand))
        return Ready(lambda: wait(run(many)), np.asarray, NETWORKS)
    x, labels = (jnp.asarray(part) for part in data(WIDTHS, ROWS, 0))
    params = jax.tree.map(jnp.asarray, weights(WIDTHS, 1, 1)[0])
    flat, back = ravel_pytree(params)
    direction = back(jnp.asarray(np.random.default_rng(2).standard_normal(flat.shape), jnp.float32))
    loss = lambda params, x, labels: jax_loss(params, x, labels)  # noqa: E731
    key = jax.random.key(effort)

    def product(params: Any, v: Any, x: Any, labels: Any) -> Any:
        return jax.jvp(jax.grad(lambda p: loss(p, x, labels)), (params,), (v,))[1]

    def flat_product(params: Any, x: Any, labels: Any) -> Callable[[Any], Any]:
        return lambda v: ravel_pytree(product(params, back(v), x, labels))[0]

    if task == "gradient":
        fn = jax.grad(loss)
    elif task == "hvp":
        curved = lambda params, x, labels: js.curvature.hvp(lambda p: loss(p, x, labels), params, direction)  # noqa: E731
        fn = curved if name == OURS else (lambda params, x, labels: product(params, direction, x, labels))
    elif task == "top" and name == MATFREE:

        def fn(params: Any, x: Any, labels: Any) -> Any:
            start = jax.random.normal(key, flat.shape)
            found = eig.eigh_partial(decomp.tridiag_sym(effort, reortho="full", custom_vjp=False))
            return jnp.sort(found(flat_product(params, x, labels), start)[0])[-TOP:]

    elif task == "top":

        def fn(params: Any, x: Any, labels: Any) -> Any:
            return js.curvature.spectrum(
                lambda p: loss(p, x, labels),
                params,
                TOP,
                key,
                which="largest",
                num_matvecs=effort,
                multiplicities=name == BOTH,
            ).eigenvalues

    elif name == MATFREE:

        def fn(params: Any, x: Any, labels: Any) -> Any:
            decompose = decomp.tridiag_sym(STEPS, reortho="full", custom_vjp=False)

            def one(start: Any) -> Any:
                nodes, vectors = jnp.linalg.eigh(decompose(flat_product(params, x, labels), start).J_small)
                return nodes, vectors[0] ** 2

            return jax.vmap(one)(jax.random.normal(key, (SAMPLES, flat.size)))

    else:

        def fn(params: Any, x: Any, labels: Any) -> Any:
            found = js.curvature.density(
                lambda p: loss(p, x, labels), params, key, num_samples=SAMPLES, num_matvecs=STEPS
            )
            return found.nodes, found.weights

    compiled = jax.jit(fn)
    run = lambda: wait(compiled(params, x, labels))  # noqa: E731
    if task == "top":
        return Ready(run, lambda found: np.asarray(found, float))
    if task == "density":
        return Ready(run, lambda found: np.stack([np.asarray(part, float).ravel() for part in found]))
    return Ready(run, lambda found: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)]))


def with_torch(task: str, name: str, effort: int) -> Ready:
    import torch
    from torch import nn

    torch.manual_seed(effort)

    def network(kernels: Kernels) -> Any:
        layers: list[Any] = []
        for kernel, bias in kernels:
            layer = nn.Linear(*kernel.shape)
            with torch.no_grad():
                layer.weight.copy_(torch.tensor(kernel.T.copy()))
                layer.bias.copy_(torch.tensor(bias))
            layers += [layer, nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    def tensors(widths: tuple[int, ...], rows: int) -> tuple[Any, Any]:
        x, labels = data(widths, rows, 0)
        return torch.tensor(x), torch.tensor(labels)

    criterion = nn.CrossEntropyLoss()
    if task == "ensemble":
        x, labels = tensors(SMALL, SMALL_ROWS)
        models = [network(kernels) for kernels in weights(SMALL, ALONE, 1)]

        def with_curvlinops(model: Any) -> Any:
            from curvlinops import HessianLinearOperator

            params = list(model.parameters())
            operator = HessianLinearOperator(model, criterion, params, [(x, labels)], check_deterministic=False)
            return torch.linalg.eigvalsh(operator @ torch.eye(operator.shape[1]))

        def by_hand(model: Any) -> Any:
            params = dict(model.named_parameters())
            sizes = [p.numel() for p in params.values()]

            def loss(flat: Any) -> Any:
                parts = [part.view_as(p) for part, p in zip(flat.split(sizes), params.values(), strict=True)]
                return criterion(torch.func.functional_call(model, dict(zip(params, parts, strict=True)), (x,)), labels)

            flat = torch.cat([p.detach().ravel() for p in params.values()])
            return torch.linalg.eigvalsh(torch.func.hessian(loss)(flat))

        one = with_curvlinops if name == CURVLINOPS else by_hand
        return Ready(lambda: torch.stack([one(model) for model in models]), lambda found: found.numpy(), ALONE)
    x, labels = tensors(WIDTHS, ROWS)
    model = network(weights(WIDTHS, 1, 1)[0])
    params = list(model.parameters())
    flat = np.random.default_rng(2).standard_normal(sum(p.numel() for p in params)).astype(np.float32)
    direction, start = [], 0
    for kernel, bias in zip(params[::2], params[1::2], strict=True):  # in the order of JAX: kernel [in, out], bias
        size = kernel.numel()
        direction.append(torch.tensor(flat[start : start + size].reshape(tuple(kernel.shape)[::-1]).T.copy()))
        direction.append(torch.tensor(flat[start + size : start + size + bias.numel()]))
        start += size + bias.numel()

    def ordered(leaves: Any) -> np.ndarray:
        return np.concatenate([leaf.detach().numpy().T.ravel() for leaf in leaves])

    if task == "gradient":
        return Ready(lambda: torch.autograd.grad(criterion(model(x), labels), params), ordered)
    if name == CURVLINOPS:
        from curvlinops import HessianLinearOperator

        operator = HessianLinearOperator(model, criterion, params, [(x, labels)], check_deterministic=False)
        if task == "hvp":
            return Ready(lambda: operator @ direction, ordered)
        if task == "top":
            from scipy.sparse.linalg import eigsh

            wrapped = operator.to_scipy(np.float32)
            tolerance = 10 ** (-effort / 20)
            return Ready(
                lambda: eigsh(wrapped, k=TOP, which="LA", tol=tolerance, return_eigenvectors=False),
                lambda found: np.sort(found),
            )
        from curvlinops import lanczos_approximate_spectrum

        return Ready(
            lambda: lanczos_approximate_spectrum(operator, STEPS, num_repeats=SAMPLES),
            lambda found: np.stack([part.numpy() for part in found]),
        )
    if name == EIGENTHINGS:
        from hessian_eigenthings import HessianOperator, lanczos, spectral_density, supervised_loss

        held = HessianOperator(model, [(x, labels)], supervised_loss(nn.functional.cross_entropy))
        joined = torch.cat([leaf.ravel() for leaf in direction])
        if task == "hvp":

            def apart(found: Any) -> np.ndarray:
                parts = found.detach().split([p.numel() for p in params])
                return ordered([part.view_as(p) for part, p in zip(parts, params, strict=True)])

            return Ready(lambda: held.matvec(joined), apart)
        if task == "top":
            return Ready(
                lambda: lanczos(held, k=TOP, max_iter=effort, which="LA", reorthogonalize=True, seed=effort),
                lambda found: np.sort(found.eigenvalues.detach().numpy()),
            )
        return Ready(
            lambda: spectral_density(held, num_runs=SAMPLES, lanczos_steps=STEPS, seed=effort),
            lambda found: np.stack([found.grid.numpy(), found.density.numpy()]),
        )
    if name == PYHESSIAN:
        from pyhessian import hessian
        from pyhessian.utils import hessian_vector_product

        if task == "hvp":  # with its gradient, which it keeps

            def product() -> Any:
                found = hessian(model, criterion, data=(x, labels), cuda=False)
                return hessian_vector_product(found.gradsH, found.params, direction)

            return Ready(product, ordered)
        if task == "top":
            return Ready(
                lambda: hessian(model, criterion, data=(x, labels), cuda=False).eigenvalues(
                    maxIter=4 * effort, tol=10 ** (-effort / 20), top_n=TOP
                )[0],
                lambda found: np.sort(np.array(found)),
            )
        return Ready(
            lambda: hessian(model, criterion, data=(x, labels), cuda=False).density(iter=STEPS, n_v=SAMPLES), np.asarray
        )
    raise ValueError(name)


class Prepared(NamedTuple):
    first: float  # seconds of the first run
    networks: int
    values: np.ndarray


def prepare(label: str, side: str, task: str, name: str, effort: int) -> Prepared:
    ready = (with_jax if side == "jax" else with_torch)(task, name, effort)
    result, first = turns.hold(label, ready.run)
    return Prepared(first, ready.networks, ready.values(result))


# In the main process.


def pools(threads: int, sides: list[str]) -> dict[str, ProcessPoolExecutor]:
    fresh = multiprocessing.get_context("spawn")
    return {side: ProcessPoolExecutor(1, mp_context=fresh, initializer=begin, initargs=(threads,)) for side in sides}


def error_of(task: str, values: np.ndarray, truth: dict[str, np.ndarray]) -> float:
    """Of eigenvalues: the worst relative to itself, or to the largest. Of a density: the area between the distributions, in units of the range."""
    if task == "top":
        exactly = truth["top"]
        return float((abs(values - exactly) / abs(exactly)).max()) if values.shape == exactly.shape else float("inf")
    if task == "ensemble":
        exactly = truth["ensemble"]
        return float((abs(values[: len(exactly)] - exactly) / abs(exactly).max(axis=1, keepdims=True)).max())
    if task == "density":
        spectrum = truth["spectrum"]
        points, mass = values
        order = np.argsort(points)
        points, mass = points[order], np.cumsum(mass[order]) / mass.sum()
        span = spectrum[-1] - spectrum[0]
        grid = np.linspace(spectrum[0] - 0.1 * span, spectrum[-1] + 0.1 * span, 20001)
        ours = np.concatenate([[0], mass])[np.searchsorted(points, grid, side="right")]
        exactly = np.searchsorted(spectrum, grid, side="right") / len(spectrum)
        return float(abs(ours - exactly).mean() * 1.2)
    return 0.0


def compare(
    call: Callable[..., Any], sides: list[str], task: str, truth: dict[str, np.ndarray], rounds: int
) -> dict[str, Any]:
    """Everybody who is there, in turns; who is not, or fails, says why."""
    found: dict[str, tuple[str, Prepared, float, int]] = {}
    missing: dict[str, str] = {}
    for side, names in CONTENDERS[task].items():
        for name in names:
            module = MODULES.get(name)
            if side not in sides or (module and importlib.util.find_spec(module) is None):
                missing[name] = "unavailable (the extra 'bench' has it)"
                continue
            for effort in EFFORTS if task == "top" else (0,):
                try:
                    prepared = call(side, prepare, f"{task} {name}", side, task, name, effort)
                except Exception as error:  # a peer's own
                    missing[name] = CRASHES.get((name, task), f"{type(error).__name__}: {error}")[:160]
                    continue
                error = error_of(task, prepared.values, truth)
                found[name] = side, prepared, error, effort
                missing.pop(name, None)
                if task != "top" or error <= TOLERANCE:
                    break
    seconds = turns.in_turns(list(found), rounds, lambda name: call(found[name][0], turns.turn, f"{task} {name}"))
    scale = {
        name: NETWORKS / prepared.networks if task == "ensemble" else 1.0 for name, (_, prepared, _, _) in found.items()
    }
    rows = {
        name: {
            "median": statistics.median(seconds[name]) * scale[name],
            "compiling": max(0.0, prepared.first - statistics.median(seconds[name])),
            "error": error,
            "effort": effort,
            "scaled": scale[name],
        }
        for name, (_, prepared, error, effort) in found.items()
    }
    difference = None
    if task in ("gradient", "hvp"):
        stacked = np.stack([prepared.values for _, prepared, _, _ in found.values()])
        difference = float(np.ptp(stacked, axis=0).max() / abs(stacked).max())
    return {"task": task, "rows": rows, "missing": missing, "difference": difference}


def verdicts(threads: int, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Goal by goal: what was to be reached, what was measured, and whether that is enough."""
    rows = {task: result["rows"] for task, result in results.items()}
    found = []

    def judge(task: str, against: str, goal: float, measured: float, *, at_most: bool = False) -> None:
        named = f"{task}, {threads} thread{'s' * (threads > 1)}"
        reached = measured <= goal if at_most else measured >= goal
        found.append({"task": named, "against": against, "goal": goal, "measured": measured, "reached": reached})

    product = rows["hvp"][OURS]["median"]
    judge("hvp", "over a gradient, at most", 2.5, product / rows["gradient"][JAX]["median"], at_most=True)
    for task, products in (("top", rows["top"][OURS]["effort"]), ("density", SAMPLES * STEPS)):
        judge(task, "over its products, at most", 1.2, rows[task][OURS]["median"] / (products * product), at_most=True)
    for task, goal in (("top", 1.0), ("density", 1.0), ("ensemble", 10.0)):
        for name, row in rows[task].items():
            if name in (OURS, BOTH) or (task == "ensemble" and name == JAX):
                continue
            good = task != "top" or row["error"] <= TOLERANCE
            measured = row["median"] / rows[task][OURS]["median"] if good else float("inf")
            judge(task, f"{name}, times ours at least", goal, measured)
    return found


def show(console: Console, threads: int, result: dict[str, Any]) -> None:
    task = result["task"]
    table = Table("contender", title=f"{TITLES[task]}, {threads} thread{'s' * (threads > 1)}")
    for name in ("first run s", "median ms", "times ours", "error", "steps"):
        table.add_column(name, justify="right")
    table.add_column("")
    own = next(iter(result["rows"].values()))["median"]
    for name, row in result["rows"].items():
        short = task == "top" and row["error"] > TOLERANCE
        table.add_row(
            name,
            f"{row['compiling']:.2f}",
            f"{1000 * row['median']:.2f}",
            f"{row['median'] / own:.2f}",
            "" if task in ("gradient", "hvp") else f"{row['error']:.1e}",
            f"{row['effort']}" if task == "top" else "",
            "[red]never within the tolerance[/]"
            if short
            else f"{round(NETWORKS / row['scaled'])} networks, scaled"
            if row["scaled"] > 1
            else "",
        )
    for name, why in result["missing"].items():
        table.add_row(name, "", "", "", "", "", why)
    console.print(table)
    if result["difference"] is not None:
        console.print(f"results within {result['difference']:.1e}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, one thread: does everything run?")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), help="only these tasks")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="1 2 when not given")
    parser.add_argument("--rounds", type=int, help="turns of each contender (7; 1 with --quick)")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    chosen, console = parser.parse_args(), Console(width=max(Console().width, 140))
    rounds = chosen.rounds or (1 if chosen.quick else 7)
    threads = [1] if chosen.quick else chosen.threads
    sides = ["jax", *(["torch"] if importlib.util.find_spec("torch") else [])]
    load = turns.load(console)
    if "torch" not in sides:
        console.print("torch: unavailable (the extra 'bench' has it and the peers); the rest runs.")
    truth: dict[str, np.ndarray] = {}
    if {"top", "density"} & set(chosen.only):
        console.print("the whole spectrum in float64, to compare with (a minute or two)")
        truth["spectrum"] = exact(small=False)[0]
        truth["top"] = truth["spectrum"][-TOP:]
    if "ensemble" in chosen.only:
        truth["ensemble"] = exact(small=True)
    everything: list[dict[str, Any]] = []
    judged: list[dict[str, Any]] = []
    for count in threads:
        working = pools(count, sides)

        def call(side: str, function: Any, *args: Any) -> Any:
            return working[side].submit(function, *args).result()  # noqa: B023

        results = {}
        for task in chosen.only:
            results[task] = compare(call, sides, task, truth, rounds)
            show(console, count, results[task])
            for side in sides:
                call(side, turns.forget)
        everything.append({"threads": count, "tasks": results})
        if set(chosen.only) == set(TASKS) and not chosen.quick:
            judged += verdicts(count, results)
        for pool in working.values():
            pool.shutdown()
    turns.goals(console, judged, "goals")
    if chosen.json:
        chosen.json.write_text(json.dumps({"load": load, "runs": everything, "goals": judged}))
    return 0 if all(verdict["reached"] for verdict in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
