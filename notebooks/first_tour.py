# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first tour: which changes of your network change nothing?
#
# You have a network: a function `apply(params, x)` and a pytree of parameters. This tour finds its symmetry group, proves it,
# asks whether it is complete, and uses it to tell whether two sets of parameters are one network. Put your own model in
# the next cell; nothing after it knows what kind of network it is.

# %%
import jaxsym as js

js.use_all_cores()  # the first thing in a script or notebook

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)  # kernels and distances want more than seven digits


def apply(params, x):
    """Tanh units, then ReLU units with a skip past them, in plain jax.numpy."""
    h = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"])
    g = jax.nn.relu(h @ params["second"]["w"] + params["second"]["b"])
    return g @ params["out"]["w"] + h @ params["skip"] + params["out"]["b"]


def init(key):
    """Normal weights and biases."""
    shapes = {
        "first": {"w": (3, 4), "b": (4,)},
        "second": {"w": (4, 5), "b": (5,)},
        "out": {"w": (5, 2), "b": (2,)},
        "skip": (4, 2),
    }
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, shape) / 2 for k, shape in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


params = init(jax.random.key(0))
x = jax.random.normal(jax.random.key(1), (300, 3))

# %% [markdown]
# ## Discover
#
# The group is read from the jaxpr. Each row is a factor: what moves together, and with which exponent. What is pinned has a reason.

# %%
sym = js.discover(apply, params, x)
print(sym)
print("elements of the finite part:", sym.order, "  dimension of the rest:", sym.dim)

# %% [markdown]
# The tanh units permute and flip (4! 2^4). The ReLU units permute (5!) and rescale (5 dimensions); and because a linear path runs beside them, each can
# flip too, the skip and the output bias taking up the difference: relu(z) - relu(-z) = z (2^5).
#
# ## Verify
#
# A claim about a group is worth what a random element shows: the same outputs, in float64, at random parameters with non-zero biases.

# %%
proof = js.verify(apply, sym, params, x, key=jax.random.key(2))
print("largest residual:", float(proof.residual), "  verified:", bool(proof.ok))

# %% [markdown]
# A wrong action does not pass. Here is one that would rescale tanh units:


# %%
def rescale_tanh(coordinates, params):
    """Wrong: tanh is not homogeneous."""
    grow = jnp.exp(coordinates[0])
    first = jax.tree.map(lambda leaf: leaf * grow, params["first"])
    second = params["second"] | {"w": params["second"]["w"] / grow}
    return params | {"first": first, "second": second, "skip": params["skip"] / grow}


wrong = js.Symmetry.from_action(rescale_tanh, dim=1)
print("verified:", bool(js.verify(apply, wrong, params, x, key=jax.random.key(2)).ok))

# %% [markdown]
# ## Is that all?
#
# The tangent of the orbit lies in the kernel of the Jacobian. What else is in that kernel is *hidden*: flat to first order, and not from the group.

# %%
certificate = js.certify(apply, sym, params, x)
print(certificate)

# %% [markdown]
# ## One network or two?
#
# Twelve sets of parameters: three networks, four copies of each, moved by random elements. As points they are all far apart. Modulo the group they are three.

# %%
networks = [init(jax.random.key(10 + n)) for n in range(3)]
copies = [sym.act(sym.sample(jax.random.key(100 + i)), network) for network in networks for i in range(4)]


def table(distance):
    """Distances of every two."""
    return np.array([[float(distance(a, b)) for b in copies] for a in copies])


def naive(a, b):
    """The Euclidean distance of parameters."""
    return jnp.sqrt(sum(jnp.sum((p - q) ** 2) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))


canonical = jax.jit(lambda p: js.canonicalize(sym, p).params)
points = [canonical(p) for p in copies]
as_points = table(naive)
modulo = np.array([[float(naive(a, b)) for b in points] for a in points])
print("orbit distance of two copies:", float(js.orbit_distance(sym, copies[0], copies[1])))

# %%
from matplotlib import pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for ax, values, title in ((axes[0], as_points, "as points"), (axes[1], modulo, "modulo symmetry")):
    image = ax.imshow(values, cmap="viridis", vmin=0, vmax=as_points.max())
    ax.set(title=title, xlabel="parameters", ylabel="parameters")
figure.colorbar(image, ax=axes, label="distance")
plt.show()

# %%
same = modulo < 1e-9
print("distinct networks:", len({tuple(row) for row in same}), "of", len(copies), "sets of parameters")
