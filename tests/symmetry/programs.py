"""Random JAX programs: each a list of operations, any of which can be left out, so that a failing one can be made smaller.

A program is ``(operation, number)`` pairs, the number being the seed of the operation's own choices, and what stands at its end.
"""

import random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.symmetry import blocks, layers
from tests.symmetry.layers import Parameters, dense

BATCH, STEPS, INPUTS, TOKENS = 5, 4, 3, 7
OPERATIONS = layers.operations(vars(layers)) | layers.operations(vars(blocks))
COMMON = ("dense", "layer", "layer", "activation", "residual")
HEADS = {  # what is left of a program at its end
    "dense": lambda p, x: dense(p, "out", x, 4),
    "plain": lambda p, x: x,
    "mean": lambda p, x: dense(p, "out", x.mean(1), 4),
    "log softmax": lambda p, x: jax.nn.log_softmax(dense(p, "out", x, 3)),
    "loss": lambda p, x: jnp.square(dense(p, "out", x, 1) - 0.3).mean((1, 2)),
    "flat": lambda p, x: dense(p, "out", x.reshape(x.shape[0], -1), 4),
}


class Program(NamedTuple):
    """Operations with the seeds of their choices, whether they read tokens, and what is made of what they return."""

    steps: tuple[tuple[str, int], ...]
    embedded: bool = False
    head: str = "dense"

    def run(self, p, x):
        """The outputs."""
        x = p("embedding", TOKENS, 4)[x] + (p("positions", STEPS, 4)) if self.embedded else x
        for number, (name, seed) in enumerate(self.steps):
            x = OPERATIONS[name](p, str(number), random.Random(seed), x)
        return HEADS[self.head](p, x)

    def inputs(self, batch=BATCH):
        """Normal numbers; or tokens, of which every one occurs at every step, if the batch is large enough."""
        if self.embedded:
            return jnp.asarray((np.arange(batch)[:, None] + np.arange(STEPS) ** 2) % TOKENS)
        return jnp.asarray(np.random.default_rng(len(self.steps)).normal(size=(batch, STEPS, INPUTS)), jnp.float32)

    def built(self, batch=BATCH):
        """``(apply, params, inputs)``."""
        made = Parameters()
        jax.eval_shape(lambda x: self.run(made, x), self.inputs())
        params = {name: jnp.asarray(leaf) for name, leaf in made.known.items()}
        return lambda params, x: self.run(Parameters(params), x), params, (self.inputs(batch),)


def drawn(seed):
    """A program of 1 to 5 operations."""
    rng = random.Random(seed)
    names = list(OPERATIONS)
    steps = [
        (rng.choice(COMMON) if rng.random() < 0.25 else rng.choice(names), rng.randrange(10**6))
        for _ in range(rng.randint(1, 5))
    ]
    head = "dense" if rng.random() < 0.6 else rng.choice(list(HEADS))
    return Program(tuple(steps), rng.random() < 0.15, head)
