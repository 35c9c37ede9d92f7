"""A whole training run as one pure function: :func:`make_train`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxsym import tree
from jaxsym.catalogue import find


class Snapshot(NamedTuple):
    """What a probe sees: the state *before* the update of this step.

    ``step`` and ``loss`` are scalars; ``grads`` is the gradient of ``loss`` at ``params``.
    """

    step: Int[Array, ""]
    params: PyTree
    grads: PyTree
    loss: Float[Array, ""]


class Trained(NamedTuple):
    """The result of a run: the final parameters, and the records, stacked along their axis 0."""

    params: PyTree
    history: dict[str, PyTree]


class _State(NamedTuple):
    step: Int[Array, ""]
    params: PyTree
    optimizer: PyTree
    order: Int[Array, " N"] | None  # this epoch's permutation of the data; None with full batches


Probe = Callable[[Snapshot], PyTree]


def make_train(
    init: Callable[..., PyTree],
    loss: Callable[..., Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    data: PyTree | None = None,
    *,
    steps: int,
    batch_size: int | None = None,
    probes: Mapping[str, Probe] | None = None,
    record_every: int = 1,
) -> Callable[..., Trained]:
    """Make ``train(key, **hyper) -> Trained``: a run as one ``lax.scan``, pure, to be jitted and vmapped.

    Hyperparameters are traced, so that one program serves all their values. A name given to ``train`` reaches whoever
    declares it: a keyword of ``init`` or of ``loss``, or a hyperparameter of an optimizer that is wrapped in
    :func:`optax.inject_hyperparams`. A name that nobody declares is an error.

    Parameters
    ----------
    init
        ``init(key, **hyper) -> params``.
    loss
        ``loss(params, batch, key, **hyper) -> scalar``; ``batch`` is shaped like ``data``, ``key`` is new every step.
    optimizer
        An optax transformation; it is also given ``value``, ``grad`` and ``value_fn`` (as ``optax.lbfgs`` wants).
    data
        A pytree of arrays ``[N, ...]``, or None for a loss that needs none.
    steps
        Number of updates.
    batch_size
        None: every step sees all N rows. Otherwise epochs are shuffled and cut into ``N // batch_size`` batches; what
        is left over sits out the epoch.
    probes
        Named pure functions of a :class:`Snapshot`; their results come back stacked as ``history[name]``.
    record_every
        Records are taken before the updates 0, k, 2k, ... and once more after the last one.

    Returns
    -------
    Callable
        ``train(key, **hyper) -> Trained(params, history)``. ``history`` has ``step`` ``[R]``, ``loss`` ``[R]`` and one
        entry per probe, R = ceil(steps / record_every) + 1.

    Raises
    ------
    ValueError
        At construction, from static facts: steps, batch size, data that is empty, ragged or not finite, a loss that is
        not a scalar. (Where ``init`` or ``loss`` has keywords without default, the loss is checked at the first call.)

    Examples
    --------
    >>> import optax, jax, jaxsym as js
    >>> train = js.make_train(
    ...     init=lambda key: jax.random.normal(key),
    ...     loss=lambda w, batch, key: (w - 3) ** 2,
    ...     optimizer=optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
    ...     steps=100,
    ... )
    >>> round(float(train(jax.random.key(0), learning_rate=0.2).params), 3)
    3.0
    """
    _check_positive("steps", steps)
    _check_positive("record_every", record_every)
    if not isinstance(probes or {}, Mapping) or not all(callable(probe) for probe in (probes or {}).values()):
        msg = "probes: expected a dict of functions by name, such as {'norm': probes.gradient_norm}."
        raise ValueError(msg)
    probes = dict(probes or {})
    for reserved in {"step", "loss"} & set(probes):
        msg = f"probes: the name {reserved!r} is taken, history holds it anyway; choose another."
        raise ValueError(msg)
    num_rows = _check_data(data, batch_size)
    data = jax.tree.map(jnp.asarray, data)
    optimizer = optax.with_extra_args_support(optimizer)
    init_names, loss_names = _keywords(init, 1, "init"), _keywords(loss, 3, "loss")

    def batch_of(state: _State, key: Array) -> tuple[PyTree, Array | None]:
        """The rows of this step, and the permutation that they were taken from."""
        if batch_size is None or num_rows is None:
            return data, None
        per_epoch = num_rows // batch_size
        epoch, index = state.step // per_epoch, state.step % per_epoch
        order = jax.lax.cond(
            index == 0,
            lambda _: jax.random.permutation(jax.random.fold_in(key, epoch), num_rows),
            lambda order: order,
            state.order,
        )
        rows = jax.lax.dynamic_slice_in_dim(order, index * batch_size, batch_size)
        return jax.tree.map(lambda leaf: leaf[rows], data), order

    def check_loss(params: PyTree, hyper: dict[str, Any]) -> None:
        rows = num_rows if batch_size is None else batch_size
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), data)
        own = {name: value for name, value in hyper.items() if name in loss_names}
        for name, leaf in tree.leaves(params).items():
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                msg = f"params: {name} has type {leaf.dtype}, expected floating point; keep it out of what is trained."
                raise ValueError(msg)
        value = jax.eval_shape(lambda *args: loss(*args, **own), params, batch, jax.random.key(0))
        if getattr(value, "shape", None) != ():
            got = jax.tree.map(lambda leaf: leaf.shape, value)
            msg = f"loss: got a value of shape {got}, expected a scalar; reduce it, for instance with jnp.mean."
            raise ValueError(msg)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            msg = f"loss: got a value of type {value.dtype}, expected floating point."
            raise ValueError(msg)
        seen = Snapshot(jax.eval_shape(lambda: jnp.asarray(0)), params, params, value)
        for probe in probes.values():
            jax.eval_shape(probe, seen)

    def train(key: Array, **hyper: Any) -> Trained:
        init_key, order_key, loss_key = jax.random.split(key, 3)
        params = init(init_key, **{name: value for name, value in hyper.items() if name in init_names})
        check_loss(params, hyper)
        optimizer_state, injected = _inject(optimizer.init(params), hyper)
        known = dict.fromkeys([*init_names, *loss_names, *injected])
        for name in hyper:
            find(
                known,
                name,
                "hyperparameter of train (a keyword of init or of loss, or of optax.inject_hyperparams without a schedule)",
            )
        loss_hyper = {name: value for name, value in hyper.items() if name in loss_names}

        def look(state: _State) -> tuple[Snapshot, Callable[[PyTree], Array], Array | None]:
            batch, order = batch_of(state, order_key)
            step_key = jax.random.fold_in(loss_key, state.step)

            def objective(params: PyTree) -> Array:
                return loss(params, batch, step_key, **loss_hyper)

            value, grads = jax.value_and_grad(objective)(state.params)
            return Snapshot(state.step, state.params, grads, value), objective, order

        def update(state: _State) -> tuple[_State, Snapshot]:
            seen, objective, order = look(state)
            updates, optimizer_state = optimizer.update(
                seen.grads, state.optimizer, state.params, value=seen.loss, grad=seen.grads, value_fn=objective
            )
            params = optax.apply_updates(state.params, updates)
            return _State(state.step + 1, params, optimizer_state, order), seen

        def record(seen: Snapshot) -> dict[str, PyTree]:
            own = {name: probe(seen) for name, probe in probes.items()}
            return {"step": seen.step, "loss": seen.loss, **own}

        def segment(state: _State, length: int) -> tuple[_State, dict[str, PyTree]]:
            """``length`` updates; the record is taken before the first of them."""

            def one(carry: tuple[_State, PyTree], index: Array) -> tuple[tuple[_State, PyTree], None]:
                state, seen = update(carry[0])
                kept = jax.lax.cond(index == 0, lambda: record(seen), lambda: carry[1])
                return (state, kept), None

            empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(look_and_record, state))
            return jax.lax.scan(one, (state, empty), jnp.arange(length))[0]

        def look_and_record(state: _State) -> dict[str, PyTree]:
            return record(look(state)[0])

        order = None if batch_size is None or num_rows is None else jnp.arange(num_rows)
        state = _State(jnp.asarray(0), params, optimizer_state, order)
        state, history = jax.lax.scan(
            lambda state, _: segment(state, record_every), state, length=steps // record_every
        )
        parts = [history]
        if steps % record_every:
            state, last = segment(state, steps % record_every)
            parts.append(_stacked(last))
        parts.append(_stacked(look_and_record(state)))
        return Trained(state.params, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))

    if not _required(init_names | loss_names):
        check_loss(jax.eval_shape(init, jax.random.key(0)), {})
    return train


def _stacked(record: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], record)


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        msg = f"{name}: got {value!r}, expected an integer of at least 1."
        raise ValueError(msg)


def _check_data(data: PyTree | None, batch_size: int | None) -> int | None:
    """The number of rows; an error where there are none, they do not match, or they are not finite."""
    leaves = tree.leaves(data)
    if not leaves:
        if batch_size is not None:
            msg = f"batch_size: got {batch_size}, but there is no data to take batches from; pass data or leave it out."
            raise ValueError(msg)
        return None
    rows = {name: (jnp.shape(leaf) or (None,))[0] for name, leaf in leaves.items()}
    if len(set(rows.values())) > 1 or None in rows.values():
        got = ", ".join(f"{name}: {jnp.shape(leaf)}" for name, leaf in leaves.items())
        msg = f"data: leaves do not match ({got}), expected the same number of rows in the first axis of each."
        raise ValueError(msg)
    num_rows = int(jnp.shape(next(iter(leaves.values())))[0])
    if num_rows == 0:
        msg = "data: got 0 rows, expected at least one."
        raise ValueError(msg)
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        bad = np.argwhere(~np.isfinite(np.asarray(leaf)))
        if len(bad):
            at = tuple(int(i) for i in bad[0])
            msg = f"data: {name} has {len(bad)} value(s) that are not finite, the first at index {at}; impute or drop them."
            raise ValueError(msg)
    if batch_size is not None:
        _check_positive("batch_size", batch_size)
        if batch_size > num_rows:
            msg = f"batch_size: got {batch_size}, but the data has {num_rows} rows; take at most that, or None for all."
            raise ValueError(msg)
    return num_rows


def _keywords(fn: Callable[..., Any], positional: int, what: str) -> dict[str, inspect.Parameter]:
    """The named parameters of ``fn`` after its first ``positional`` ones: hyperparameters that it declares."""
    if not callable(fn):
        msg = f"{what}: got {type(fn).__name__}, expected a function."
        raise TypeError(msg)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(fn).parameters.values())
    return {p.name: p for p in parameters[positional:] if p.kind in named}


def _required(keywords: dict[str, inspect.Parameter]) -> bool:
    return any(parameter.default is inspect.Parameter.empty for parameter in keywords.values())


def _inject(state: PyTree, hyper: dict[str, Any]) -> tuple[PyTree, list[str]]:
    """Put values into the states of ``optax.inject_hyperparams``; also the names found there.

    A hyperparameter that follows a schedule is not among them: the next update would overwrite the value.
    """
    names = [name.split("/") for name in tree.leaves(state)]
    scheduled = {parts[parts.index("hyperparams_states") + 1] for parts in names if "hyperparams_states" in parts}
    free = {parts[-1] for parts in names if parts[-2:-1] == ["hyperparams"]} - scheduled

    def put(path: tuple[Any, ...], leaf: Any) -> Any:
        *_, owner, name = ("", *tree.name(path).split("/"))
        if owner != "hyperparams" or name not in free & set(hyper):
            return leaf
        return jnp.asarray(hyper[name], jnp.result_type(leaf, hyper[name]))  # a default of 0 takes a rate of 0.1 too

    return jax.tree_util.tree_map_with_path(put, state), sorted(free)
