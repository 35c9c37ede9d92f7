"""What the study ``parallelism`` computes, in a process of its own: JAX fixes the number of devices when it starts.

``python -m jaxsym.studies.parallelism_worker CONFIG.json RESULTS.npz`` writes arrays, and its progress to stdout.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from jaxsym.data import Rows, digits, flattened
from jaxsym.models import MLP
from jaxsym.studies.classifying import cross_entropy, take
from jaxsym.studies.parallelism_traffic import KINDS, Traffic, traffic
from jaxsym.studies.study import network_keys
from jaxsym.training import make_train

OUTPUTS = 10
RATE, MOMENTUM = 0.1, 0.9
DTYPES = ("float64", "float32")
BATCH_AXIS, MODEL_AXIS = "batch", "model"


class Layout(NamedTuple):
    """How many devices share the rows of a batch, and how many share the hidden units."""

    way: str
    batch: int
    model: int

    @property
    def devices(self) -> int:
        """All of them."""
        return self.batch * self.model


def layouts(counts: list[int]) -> list[Layout]:
    """One device, then each way on so many devices; both ways at once where there are four or more, in pairs."""
    found = [Layout("one device", 1, 1)]
    for count in counts:
        found += [Layout("data-parallel", count, 1), Layout("model-parallel", 1, count)]
        if count >= 4 and count % 2 == 0:
            found.append(Layout("both", 2, count // 2))
    return found


def specifications() -> dict[str, dict[str, dict[str, PartitionSpec]]]:
    """Where the parameters of all networks ``[networks, ...]`` are cut: the first kernel by columns, the second by rows."""
    return {
        "params": {
            "Dense_0": {"kernel": PartitionSpec(None, None, MODEL_AXIS), "bias": PartitionSpec(None, MODEL_AXIS)},
            "Dense_1": {"kernel": PartitionSpec(None, MODEL_AXIS, None), "bias": PartitionSpec(None, None)},
        }
    }


def trained(net: MLP, steps: int) -> Callable[[PyTree, Rows], PyTree]:
    """All networks after ``steps`` of SGD with momentum; every step sees all the rows. Nothing here speaks of devices."""

    def all_of_them(params: PyTree, rows: Rows) -> PyTree:
        def one(params: PyTree) -> PyTree:
            train = make_train(
                lambda key: params,
                cross_entropy(net.apply),
                optax.sgd(RATE, MOMENTUM),
                rows,
                steps=steps,
                record_every=steps,
            )
            return train(jax.random.key(0)).params

        return jax.vmap(one)(params)

    return all_of_them


class Measured(NamedTuple):
    """Of one way on so many devices."""

    params: PyTree
    traffic: Traffic
    memory: dict[str, int]
    parameter_bytes: int
    compile_seconds: float
    run_seconds: float


def measure(net: MLP, layout: Layout, params: PyTree, rows: Rows, steps: int) -> Measured:
    """Compile the training for this layout, look at the program, and run it."""
    devices = np.array(jax.devices()[: layout.devices]).reshape(layout.batch, layout.model)
    mesh = Mesh(devices, (BATCH_AXIS, MODEL_AXIS))
    of_params = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specifications(), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )
    of_rows = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(BATCH_AXIS)), rows)
    placed = jax.device_put(params, of_params), jax.device_put(rows, of_rows)
    program = jax.jit(trained(net, steps), in_shardings=(of_params, of_rows), out_shardings=of_params, donate_argnums=0)
    start = time.perf_counter()
    compiled = program.lower(*placed).compile()
    compile_seconds = time.perf_counter() - start
    analysis, text = compiled.memory_analysis(), compiled.as_text()
    if analysis is None or text is None:
        msg = f"the platform {devices.flat[0].platform} tells neither the memory nor the text of a program."
        raise RuntimeError(msg)
    memory = {
        "argument": analysis.argument_size_in_bytes,
        "output": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
    }
    shards = jax.tree.map(
        lambda leaf, where: leaf.nbytes * np.prod(where.shard_shape(leaf.shape)) // leaf.size, params, of_params
    )
    start = time.perf_counter()
    end = jax.block_until_ready(compiled(*placed))
    return Measured(
        jax.device_get(end),
        traffic(text),
        memory,
        int(sum(jax.tree.leaves(shards))),
        compile_seconds,
        time.perf_counter() - start,
    )


def by_hand(params: PyTree, inputs: Float[Array, "B D"], devices: int, *, summed: bool) -> Float[Array, "V B outputs"]:
    """The outputs from hidden units that are shared out, written with an explicit all-reduce, or without it: then each device has its own part, and the first one's is what comes back."""
    mesh = Mesh(np.array(jax.devices()[:devices]), (MODEL_AXIS,))

    def part(params: PyTree, inputs: Array) -> Array:
        first, second = params["params"]["Dense_0"], params["params"]["Dense_1"]
        hidden = jax.nn.relu(jnp.einsum("bd,vdh->vbh", inputs, first["kernel"]) + first["bias"][:, None])
        own = jnp.einsum("vbh,vho->vbo", hidden, second["kernel"])
        return (jax.lax.psum(own, MODEL_AXIS) if summed else own) + second["bias"][:, None]

    specs = specifications(), PartitionSpec()
    whole = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return jax.jit(whole)(params, inputs)


def apart(one: PyTree, other: PyTree) -> Float[np.ndarray, " V"]:
    """The largest difference of each network's parameters, relative to the largest of them."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    most = np.max([np.abs(a - b).reshape(len(a), -1).max(axis=1) for a, b in pairs], axis=0)
    return most / np.max([np.abs(b).reshape(len(b), -1).max(axis=1) for _, b in pairs], axis=0)


def work(config: Mapping[str, Any], say: Callable[[str, int, int], None]) -> dict[str, np.ndarray]:
    """All layouts, in both precisions."""
    split = flattened(digits(config["seed"]))
    rows = take(split.train, config["batch"])
    net = MLP((config["hidden"], OUTPUTS), "relu")
    chosen = layouts(config["counts"])
    keys = network_keys(config["seed"], config["networks"])
    total = len(chosen) * len(DTYPES) * config["networks"] * config["steps"]
    done = 0
    found: dict[str, dict[tuple[int, int], Any]] = {name: {} for name in ("error", "measured", "moved")}
    by_hand_errors = {}
    alone: PyTree = None
    for column, dtype in enumerate(DTYPES):
        with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
            params, own = _drawn(net, keys, rows, dtype)
            if dtype == "float64":
                plain = jax.vmap(net.apply, (0, None))(params, own.inputs)
                for summed in (True, False):
                    outputs = by_hand(params, own.inputs, config["devices"], summed=summed)
                    by_hand_errors[summed] = float(jnp.abs(outputs - plain).max() / jnp.abs(plain).max())
            for row, layout in enumerate(chosen):
                say(f"{layout.way}, {layout.devices} device(s), {dtype}", done, total)
                got = measure(net, layout, params, own, config["steps"])
                done += config["networks"] * config["steps"]
                alone = got.params if row == 0 else alone
                found["error"][row, column] = apart(got.params, alone)
                found["moved"][row, column] = apart(got.params, params)
                found["measured"][row, column] = got
    say("done", total, total)
    shape = len(chosen), len(DTYPES)

    def table(fn: Callable[[Measured], Any]) -> np.ndarray:
        values = [fn(found["measured"][index]) for index in np.ndindex(shape)]
        return np.array(values).reshape(*shape, *np.shape(values[0]))

    def stacked(name: str) -> np.ndarray:
        return np.array([found[name][index] for index in np.ndindex(shape)]).reshape(*shape, -1)

    return {
        "way": np.array([layout.way for layout in chosen]),
        "devices": np.array([layout.devices for layout in chosen]),
        "batch_devices": np.array([layout.batch for layout in chosen]),
        "model_devices": np.array([layout.model for layout in chosen]),
        "error": stacked("error"),
        "moved": stacked("moved"),
        "bytes_per_step": table(lambda got: [got.traffic.per_step[kind] for kind in KINDS]),
        "bytes_once": table(lambda got: [got.traffic.once[kind] for kind in KINDS]),
        "collectives_per_step": table(lambda got: got.traffic.count_per_step),
        "memory": table(lambda got: list(got.memory.values())),
        "parameter_bytes": table(lambda got: got.parameter_bytes),
        "seconds": table(lambda got: got.run_seconds),
        "compile_seconds": table(lambda got: got.compile_seconds),
        "num_parameters": np.array(sum(leaf[0].size for leaf in jax.tree.leaves(params))),
        "by_hand_error": np.array(by_hand_errors[True]),
        "unsummed_error": np.array(by_hand_errors[False]),
        "platform": np.array(jax.devices()[0].platform),
        "device_kind": np.array(jax.devices()[0].device_kind),
        "device_count": np.array(len(jax.devices())),
    }


def _drawn(net: MLP, keys: Array, rows: Rows, dtype: str) -> tuple[PyTree, Rows]:
    """All networks before training, and the rows, in this precision."""
    own = Rows(jnp.asarray(rows.inputs, dtype), jnp.asarray(rows.targets))
    params = jax.vmap(lambda key: net.init(key, own.inputs))(keys)
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params), own


def main(source: str, target: str) -> None:
    """Read the config, work, and write the arrays."""
    config = json.loads(Path(source).read_text("utf-8"))
    if len(jax.devices()) < max(config["counts"]):
        msg = f"there are {len(jax.devices())} devices, expected {max(config['counts'])}."
        raise RuntimeError(msg)

    def say(label: str, done: int, total: int) -> None:
        print(f"{label}\t{done}\t{total}", flush=True)

    np.savez(target, **work(config, say))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
