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
# # An ensemble sweep, read with xarray
#
# A sweep trains every combination of hyperparameters over many seeds, writes what it has as it goes, and comes back as one labelled dataset.

# %%
import tempfile
from pathlib import Path

import jaxsym as js

js.use_all_cores()

import numpy as np
from matplotlib import pyplot as plt

root = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "scripts" / "sweeps").is_dir())
folder = Path(tempfile.mkdtemp()) / "initializers"  # for results that last, a folder of your own

# %% [markdown]
# Static axes compile a program each; traced ones, and the seeds, are mapped in one.

# %%
plan = {
    "sweep": {"target": f"{root / 'scripts' / 'sweeps' / 'networks.py'}:titanic", "seeds": 16},
    "static": {"kernel": ["constant", "normal", "xavier_normal"], "steps": [200]},
    "traced": {"learning_rate": [0.003, 0.03, 0.3]},
}
outcome = js.sweep.run(plan, folder)
print(outcome.done, "of", outcome.cells, "cells,", outcome.networks, "networks")

# %% [markdown]
# The same call goes on with what is there, so that running it again computes nothing.

# %%
again = js.sweep.run(plan, folder)
results = js.sweep.open(folder)
print(results)

# %% [markdown]
# From here on it is xarray: select by name, reduce over seeds, plot.

# %%
ends = results.isel(step=-1).squeeze("steps", drop=True)
accuracy = ends["test_accuracy"].mean("seed").compute()
print(accuracy.to_series().unstack("learning_rate").round(3))

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
at = results.squeeze("steps", drop=True).sel(learning_rate=0.03)
for kernel in results["kernel"].values:
    own = at.sel(kernel=kernel).compute()
    low, middle, high = own["loss"].quantile([0.05, 0.5, 0.95], "seed").values
    axes[0].fill_between(own["step"], low, high, alpha=0.2)
    axes[0].plot(own["step"], middle, label=kernel)
    axes[1].plot(own["step"], own["distinct_units"].mean("seed"), label=kernel)
axes[0].set(xlabel="step", ylabel="training loss: median, middle 90 %")
axes[1].set(xlabel="step", ylabel="distinct units, mean")
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# How much of the spread of the test accuracy is the initializer, how much the rate, how much the seed?

# %%
values = ends["test_accuracy"].compute()
shares = {dim: float(values.mean([d for d in values.dims if d != dim]).var() / values.var()) for dim in values.dims}
print({dim: round(share, 3) for dim, share in shares.items()})
assert np.isfinite(values).all()
