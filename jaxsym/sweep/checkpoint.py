"""Training runs that are under way, on disk: by Orbax, with a checksum of what must come back."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsym import tree
from jaxsym.sweep import store

NAME = "checkpoint.json"


def write(place: Path, mark: dict[str, str], ids: list[int], run: PyTree, first: int) -> None:
    """Save chunks of networks after ``first`` steps: parameters, optimizer state, keys and records.

    Parameters
    ----------
    place
        The folder; the newest checkpoint replaces the one before, once it is whole.
    mark
        What they belong to.
    ids
        The numbers of the chunks; ``run`` holds their networks in this order, and more where devices were left over.
    run
        A pytree of arrays, ``[devices * chunk, ...]``.
    first
        Steps done.
    """
    import orbax.checkpoint as ocp

    rows = len(ids) * int(mark["chunk"])
    leaves = {str(i): np.asarray(leaf)[:rows] for i, leaf in enumerate(jax.tree.leaves(_data(run)))}
    folder = place / f"checkpoint_{ids[0]:06d}_{first:09d}"
    store.remove(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), leaves)
    facts = mark | {"chunks": ids, "step": first, "folder": folder.name, "digest": _digest(leaves)}
    store.write_json(place / NAME, facts)
    for other in place.glob("checkpoint_*"):
        if other.name != folder.name:
            store.remove(other)


def read(
    place: Path, mark: dict[str, str], shapes: PyTree, chunk: int, log: Callable[[str], None]
) -> tuple[list[int], PyTree, int] | None:
    """The chunks, runs and steps of the checkpoint in a folder; None where there is none, or it is damaged, which is logged.

    Parameters
    ----------
    place, mark
        As for :func:`write`.
    shapes
        The structure and shapes of one chunk of runs, ``[chunk, ...]``.
    chunk
        Networks a chunk.
    log
        Told why a checkpoint is not used.
    """
    import orbax.checkpoint as ocp

    facts = store.read_json(place / NAME)
    if not isinstance(facts, dict):
        return None
    if {key: facts.get(key) for key in mark} != mark:
        log("the checkpoint belongs to another sweep or chunk; its networks start again")
        return None
    folder = place / Path(str(facts["folder"])).name
    wanted = jax.tree.leaves(_data_shapes(shapes))
    rows = len(facts["chunks"]) * chunk
    template = {str(i): jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for i, leaf in enumerate(wanted)}
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            leaves = checkpointer.restore(folder.absolute(), template)
        leaves = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        if _digest(leaves) != facts["digest"]:
            msg = "its checksum differs"
            raise ValueError(msg)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        log(f"the checkpoint is damaged ({' '.join(str(error).split())[:200]}); its networks start again")
        return None
    ordered = [leaves[str(i)] for i in range(len(wanted))]
    return list(facts["chunks"]), _keys(shapes, ordered), int(facts["step"])


def _data(run: PyTree) -> PyTree:
    """Keys as the numbers that they are."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, run)


def _data_shapes(shapes: PyTree) -> PyTree:
    return jax.eval_shape(_data, shapes)


def _keys(shapes: PyTree, leaves: list[np.ndarray]) -> PyTree:
    """The runs again, with keys where there were keys."""
    structure = jax.tree.structure(shapes)
    kinds = jax.tree.leaves(shapes)
    made: list[Any] = [
        jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(jnp.zeros((), kind.dtype)))
        if _is_key(kind)
        else jnp.asarray(leaf)
        for kind, leaf in zip(kinds, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, made)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _digest(leaves: dict[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, leaf in sorted(tree.leaves(leaves).items()):
        found.update(f"{name} {leaf.dtype} {leaf.shape} ".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()
