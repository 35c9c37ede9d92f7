"""What probes of charges cost: ``PYTHONPATH=. python benchmarks/dynamics.py``.

256 networks train for 1000 steps in one program, with the charges of every step recorded and without; compiled apart, interleaved, medians. No other
library has charges: the peer is the same training without them.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import turns
from rich.console import Console
from rich.table import Table

import jaxsym as js

GOAL = 1.25  # times training without probes
NETWORKS, STEPS, ROWS = 256, 1000, 64
WIDTHS = {"relu 4-8-3": (4, 8, 3), "relu 10-32-32-5": (10, 32, 32, 5)}


def contender(widths: tuple[int, ...], networks: int, steps: int, *, probed: bool) -> Callable[[], Any]:
    """A run of all networks, compiled."""
    net = js.models.MLP(widths[1:], "relu")
    x = jax.random.normal(jax.random.key(0), (ROWS, widths[0]))
    y = jnp.sin(x @ jax.random.normal(jax.random.key(1), (widths[0], widths[-1])))
    charges = js.dynamics.charges(js.discover(net.apply, net.init(jax.random.key(2), x), x))

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        del batch, key
        return jnp.mean((net.apply(params, x) - y) ** 2)

    probes = {"charges": lambda seen: charges(seen.params)} if probed else {}
    train = js.make_train(lambda key: net.init(key, x), loss, optax.sgd(0.01), steps=steps, probes=probes)
    keys = jax.random.split(jax.random.key(3), networks)
    run = jax.jit(js.parallel(train)).lower(keys).compile()
    return lambda: jax.block_until_ready(run(keys))


def measured(networks: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Medians and their ratio, for each network."""
    rows = []
    for name, widths in WIDTHS.items():
        for label, probed in (("plain", False), ("charges", True)):
            turns.hold(label, contender(widths, networks, steps, probed=probed))
        seconds = turns.in_turns(["plain", "charges"], rounds, turns.turn)
        plain, charged = (statistics.median(seconds[label]) for label in ("plain", "charges"))
        rows.append({"network": name, "plain": plain, "charges": charged, "ratio": charged / plain})
        turns.forget()
    return rows


def main() -> None:
    """Print the table and the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=NETWORKS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    js.use_all_cores()
    console = Console(width=max(Console().width, 100))
    turns.load(console)
    rows = measured(options.networks, options.steps, options.rounds)
    table = Table(
        "network",
        "without [s]",
        "with charges [s]",
        "ratio",
        title=f"{options.networks} networks, {options.steps} steps",
    )
    for row in rows:
        table.add_row(row["network"], f"{row['plain']:.3f}", f"{row['charges']:.3f}", f"{row['ratio']:.2f}")
    console.print(table)
    whole = (options.networks, options.steps) == (NETWORKS, STEPS)
    verdict = functools.partial(dict, against="training without probes", goal=GOAL)
    found = [verdict(task=row["network"], measured=row["ratio"], reached=row["ratio"] <= GOAL) for row in rows]
    turns.goals(console, found if whole else [], "goals")


if __name__ == "__main__":
    main()
