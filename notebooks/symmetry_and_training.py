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
# # Symmetry and training
#
# What the group does to learning: units that start equal stay equal, quantities are conserved, and minima are flat along the orbit.

# %%
import jaxsym as js

js.use_all_cores()

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Breaking it
#
# 32 networks of four tanh units for each start, trained on the Titanic in one program each. Equal units see equal gradients: a step that
# commutes with the group cannot leave the set that an exchange of two units fixes. (Of the start `tied` only the incoming weights are equal: units with
# different outgoing weights are not the same, and part.)

# %%
data = js.data.titanic()
STARTS = ("zeros", "constant", "tied", "xavier_normal")


def training(kernel):
    """A run from an initializer of the catalogue, counting distinct hidden units."""
    net = js.models.MLP((4, 1), kernel_init=js.training.initial.initializer(kernel))

    def loss(params, rows, key):
        return optax.sigmoid_binary_cross_entropy(net.apply(params, rows.inputs)[:, 0], rows.targets).mean()

    return js.make_train(
        init=lambda key: net.init(key, data.train.inputs[:1]),
        loss=loss,
        optimizer=optax.adam(0.03),
        data=data.train,
        steps=200,
        probes={"distinct": js.training.probes.distinct_units()},
        record_every=10,
    )


keys = jax.random.split(jax.random.key(0), 32)
histories = {kernel: js.parallel(training(kernel))(keys).history for kernel in STARTS}

figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for kernel, history in histories.items():
    axes[0].plot(history["step"][0], history["distinct"].mean(0), label=kernel)
    axes[1].plot(history["step"][0], history["loss"].mean(0), label=kernel)
axes[0].set(xlabel="step", ylabel="distinct units, mean")
axes[1].set(xlabel="step", ylabel="training loss, mean")
axes[1].legend(frameon=False)
plt.show()
distinct = {kernel: float(history["distinct"][:, -1].mean()) for kernel, history in histories.items()}
print("distinct units at the end:", distinct)

# %% [markdown]
# ## What is conserved
#
# Every rescaling of a ReLU unit conserves a charge along gradient flow: the squared norm of what it reads less that of what it writes. Steps of
# finite size drift, and the drift at a fixed time falls with the rate.

# %%
net = js.models.MLP((4, 2), "relu")
inputs = jax.random.normal(jax.random.key(1), (50, 3))
targets = jax.random.normal(jax.random.key(2), (50, 2))
start = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), net.init(jax.random.key(3), inputs))
sym = js.discover(net.apply, start, inputs)
charges = js.dynamics.charges(sym)
print(charges.names)


def cost(params, rows=None, key=None):
    """Mean squared error."""
    return jnp.mean((net.apply(params, inputs) - targets) ** 2)


def drift(rate):
    """How far the charges are from where they began, after a time of 4."""
    steps = round(4 / rate)
    train = js.make_train(lambda key: start, cost, optax.sgd(rate), steps=steps, record_every=steps)
    return float(jnp.linalg.norm(charges(jax.jit(train)(jax.random.key(0)).params) - charges(start)))


rates = np.array([0.16, 0.08, 0.04, 0.02])
drifts = np.array([drift(float(rate)) for rate in rates])
slope = np.polyfit(np.log(rates), np.log(drifts), 1)[0]
figure, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
ax.loglog(rates, drifts, "o-")
ax.set(xlabel="learning rate", ylabel="drift of the charges at time 4")
plt.show()
print(f"the drift goes with the rate to the power {slope:.2f}")

# %% [markdown]
# ## Where a minimum is flat
#
# The network that made the targets is a minimum of the loss at zero. Its Hessian has a zero for every dimension of the orbit, at least.

# %%
teacher = jax.tree.map(lambda leaf: leaf + 0.3, start)
many = jax.random.normal(jax.random.key(4), (400, 3))
wanted = net.apply(teacher, many)


def at_minimum(params):
    """Zero at the teacher, and along its whole orbit."""
    return jnp.mean((net.apply(params, many) - wanted) ** 2)


flat = js.curvature.flat(at_minimum, teacher, sym)
print(flat)
spectrum = js.curvature.spectrum(at_minimum, teacher)
figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
ax.semilogy(np.abs(np.asarray(spectrum.eigenvalues))[::-1], "o")
ax.axvspan(int(flat.rank) - 0.5, int(flat.rank + flat.nullity) - 0.5, alpha=0.15, label="null space")
ax.set(xlabel="eigenvalue of the Hessian, in order", ylabel="size")
ax.legend(frameon=False)
plt.show()
