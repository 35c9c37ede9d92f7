"""A whole training run as one pure function: :func:`make_train`."""

import dataclasses
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


class Run(NamedTuple):
    """A run under way, arrays only: everything that is needed to go on, from memory or from a file.

    ``step`` counts the updates made. ``order`` is this epoch's permutation of the data, None with full batches.
    ``hyper`` are those of the loss; those of the optimizer are in its state, and ``init`` has had its own.
    ``history`` holds every record's place ``[R, ...]``, zeros where the run has not come yet.
    """

    step: Int[Array, ""]
    params: PyTree
    optimizer: PyTree
    order: Int[Array, " N"] | None
    order_key: Array
    loss_key: Array
    hyper: dict[str, PyTree]
    history: dict[str, PyTree]


class _State(NamedTuple):
    """What changes from update to update."""

    step: Int[Array, ""]
    params: PyTree
    optimizer: PyTree
    order: Int[Array, " N"] | None


class _Given(NamedTuple):
    """What stays as it is from update to update."""

    order_key: Array
    loss_key: Array
    hyper: dict[str, PyTree]


Probe = Callable[[Snapshot], PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Train:
    """A training run as pure functions of a key; :func:`make_train` makes it, where the fields are explained.

    ``train(key, **hyper)`` is the whole run. In pieces, it is ``start``, any number of ``advance`` and ``finish``, which can
    be jitted, mapped and stored on the way; how the run is cut changes no bit of it.

    Examples
    --------
    >>> import jax, jaxsym as js, optax
    >>> train = js.make_train(lambda key: jax.random.normal(key), lambda w, batch, key: (w - 3) ** 2, optax.sgd(0.2), steps=30)
    >>> run = js.parallel(train.start)(jax.random.split(jax.random.key(0), 8))
    >>> advance = js.parallel(train.advance, in_axes=(0, None, None))
    >>> run = advance(advance(run, 0, 20), 20, 10)
    >>> bool(jax.numpy.allclose(js.parallel(train.finish)(run).params, 3))
    True
    """

    init: Callable[..., PyTree]
    loss: Callable[..., Float[Array, ""]]
    optimizer: optax.GradientTransformationExtraArgs
    data: PyTree = dataclasses.field(repr=False)
    steps: int
    batch_size: int | None
    probes: dict[str, Probe]
    record_every: int
    after: tuple[Callable[[Any], Any], ...] = ()

    def __call__(self, key: Array, **hyper: Any) -> Any:
        """The whole run, as one ``lax.scan`` that can be differentiated.

        Parameters
        ----------
        key
            A PRNG key.
        **hyper
            Traced hyperparameters, by name.

        Returns
        -------
        Trained
            Or what the functions given to :meth:`then` make of it.
        """
        state, given = self._begin(key, hyper)
        empty = self._empty_record(state, given)

        def segment(state: _State, length: int) -> tuple[_State, dict[str, PyTree]]:
            """``length`` updates; the record is taken before the first of them."""

            def one(carry: tuple[_State, PyTree], index: Array) -> tuple[tuple[_State, PyTree], None]:
                state, seen = self._update(carry[0], given)
                kept = jax.lax.cond(index == 0, lambda: self._record(seen), lambda: carry[1])
                return (state, kept), None

            return jax.lax.scan(one, (state, empty), jnp.arange(length))[0]

        whole, rest = divmod(self.steps, self.record_every)
        state, history = jax.lax.scan(lambda state, _: segment(state, self.record_every), state, length=whole)
        parts = [history]
        if rest:
            state, last = segment(state, rest)
            parts.append(_stacked(last))
        parts.append(_stacked(self._record(self._look(state, given)[0])))
        history = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        return self._result(Trained(state.params, history))

    def start(self, key: Array, **hyper: Any) -> Run:
        """The run before its first update.

        Parameters
        ----------
        key, **hyper
            As for the whole run.

        Returns
        -------
        Run
        """
        state, given = self._begin(key, hyper)
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), state)
        num_records = -(-self.steps // self.record_every) + 1
        history = jax.tree.map(
            lambda leaf: jnp.zeros((num_records, *leaf.shape), leaf.dtype), self._empty_record(state, given)
        )
        given = given._replace(hyper=jax.tree.map(lambda value: _strong(value, state.params), given.hyper))
        return Run(state.step, state.params, state.optimizer, state.order, *given, history)

    def advance(self, run: Run, first: Int[Array, ""], num: Int[Array, ""]) -> Run:
        """At most ``num`` further updates, and never more than there are to make.

        One compiled program serves every ``first`` and ``num``. Mapped over an ensemble, both are shared
        (``in_axes=(0, None, None)``): that is why ``first`` is given, though each run knows it.

        Parameters
        ----------
        run
            A run, whose updates so far are
        first
            in number, as ``run.step`` says.
        num
            How many updates to make; a traced integer.

        Returns
        -------
        Run
            With ``step`` at ``min(first + num, steps)``.
        """
        given = _Given(run.order_key, run.loss_key, run.hyper)
        first = jnp.asarray(first, run.step.dtype)
        end = jnp.minimum(first + jnp.asarray(num, first.dtype), self.steps)

        def one(step: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            (params, optimizer, order), history = carry
            state, seen = self._update(_State(step, params, optimizer, order), given)
            place = step // self.record_every
            if self.record_every == 1:
                kept = self._record(seen)
            else:  # between the records the last one is written again: only its row is touched, never the whole buffer
                kept = jax.lax.cond(
                    step % self.record_every == 0,
                    lambda: self._record(seen),
                    lambda: jax.tree.map(lambda leaf: leaf[place], history),
                )
            history = jax.tree.map(lambda leaf, row: leaf.at[place].set(row), history, kept)
            return (state.params, state.optimizer, state.order), history

        start = ((run.params, run.optimizer, run.order), run.history)
        (params, optimizer, order), history = jax.lax.fori_loop(first, jnp.maximum(first, end), one, start)
        return Run(jnp.maximum(first, end), params, optimizer, order, *given, history)

    def finish(self, run: Run) -> Any:
        """The result of a run that has made all its updates.

        Parameters
        ----------
        run
            The run after ``steps`` updates.

        Returns
        -------
        Trained
            As from the whole run, or what the functions given to :meth:`then` make of it.
        """
        given = _Given(run.order_key, run.loss_key, run.hyper)
        state = _State(run.step, run.params, run.optimizer, run.order)
        last = self._record(self._look(state, given)[0])
        history = jax.tree.map(lambda leaf, row: leaf.at[-1].set(row), run.history, last)
        return self._result(Trained(run.params, history))

    def then(self, fn: Callable[[Any], Any]) -> "Train":
        """The same run with a function of its result at the end.

        Parameters
        ----------
        fn
            A pure function of what the run returns so far, :class:`Trained` at first: ``fn(trained) -> pytree of arrays``.

        Returns
        -------
        Train
        """
        return dataclasses.replace(self, after=(*self.after, fn))

    def _begin(self, key: Array, hyper: dict[str, Any]) -> tuple[_State, _Given]:
        init_names, loss_names = _keywords(self.init, 1, "init"), _keywords(self.loss, 3, "loss")
        init_key, order_key, loss_key = jax.random.split(key, 3)
        params = self.init(init_key, **{name: value for name, value in hyper.items() if name in init_names})
        loss_hyper = {name: value for name, value in hyper.items() if name in loss_names}
        self._check_loss(params, loss_hyper)
        optimizer_state, injected = _inject(self.optimizer.init(params), hyper)
        known = dict.fromkeys([*init_names, *loss_names, *injected])
        for name in hyper:
            find(
                known,
                name,
                "hyperparameter of train (a keyword of init or of loss, or of optax.inject_hyperparams without a schedule)",
            )
        order = None if self.batch_size is None or self._num_rows is None else jnp.arange(self._num_rows)
        return _State(jnp.asarray(0), params, optimizer_state, order), _Given(order_key, loss_key, loss_hyper)

    @property
    def _num_rows(self) -> int | None:
        leaves = jax.tree.leaves(self.data)
        return leaves[0].shape[0] if leaves else None

    def _batch(self, state: _State, key: Array) -> tuple[PyTree, Array | None]:
        """The rows of this step, and the permutation that they were taken from."""
        if self.batch_size is None or self._num_rows is None:
            return self.data, None
        num_rows, per_epoch = self._num_rows, self._num_rows // self.batch_size
        epoch, index = state.step // per_epoch, state.step % per_epoch
        order = jax.lax.cond(
            index == 0,
            lambda _: jax.random.permutation(jax.random.fold_in(key, epoch), num_rows),
            lambda order: order,
            state.order,
        )
        rows = jax.lax.dynamic_slice_in_dim(order, index * self.batch_size, self.batch_size)
        return jax.tree.map(lambda leaf: leaf[rows], self.data), order

    def _look(self, state: _State, given: _Given) -> tuple[Snapshot, Callable[[PyTree], Array], Array | None]:
        batch, order = self._batch(state, given.order_key)
        step_key = jax.random.fold_in(given.loss_key, state.step)

        def objective(params: PyTree, step: Any = None) -> Array:
            del step  # a line search hands on what it is given besides
            return self.loss(params, batch, step_key, **given.hyper)

        value, grads = jax.value_and_grad(objective)(state.params)
        return Snapshot(state.step, state.params, grads, value), objective, order

    def _update(self, state: _State, given: _Given) -> tuple[_State, Snapshot]:
        seen, objective, order = self._look(state, given)
        updates, optimizer_state = self.optimizer.update(
            seen.grads,
            state.optimizer,
            state.params,
            value=seen.loss,
            grad=seen.grads,
            value_fn=objective,
            step=state.step,
        )
        params = optax.apply_updates(state.params, updates)
        return _State(state.step + 1, params, optimizer_state, order), seen

    def _record(self, seen: Snapshot) -> dict[str, PyTree]:
        own = {name: probe(seen) for name, probe in self.probes.items()}
        return {"step": seen.step, "loss": seen.loss, **own}

    def _empty_record(self, state: _State, given: _Given) -> dict[str, PyTree]:
        shapes = jax.eval_shape(lambda state: self._record(self._look(state, given)[0]), state)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def _result(self, trained: Trained) -> Any:
        result: Any = trained
        for fn in self.after:
            result = fn(result)
        return result

    def _check_loss(self, params: PyTree, hyper: dict[str, Any]) -> None:
        rows = self._num_rows if self.batch_size is None else self.batch_size
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), self.data)
        for name, leaf in tree.leaves(params).items():
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                msg = f"params: {name} has type {leaf.dtype}, expected floating point; keep it out of what is trained."
                raise ValueError(msg)
        value = jax.eval_shape(lambda *args: self.loss(*args, **hyper), params, batch, jax.random.key(0))
        if getattr(value, "shape", None) != ():
            got = jax.tree.map(lambda leaf: leaf.shape, value)
            msg = f"loss: got a value of shape {got}, expected a scalar; reduce it, for instance with jnp.mean."
            raise ValueError(msg)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            msg = f"loss: got a value of type {value.dtype}, expected floating point."
            raise ValueError(msg)
        seen = Snapshot(jax.eval_shape(lambda: jnp.asarray(0)), params, params, value)
        for probe in self.probes.values():
            jax.eval_shape(probe, seen)


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
) -> Train:
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
        An optax transformation; it is also given ``value``, ``grad`` and ``value_fn`` (as ``optax.lbfgs`` wants), and ``step``, the number of the update.
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
    Train
        ``train(key, **hyper) -> Trained(params, history)``. ``history`` has ``step`` ``[R]``, ``loss`` ``[R]`` and one
        entry per probe, R = ceil(steps / record_every) + 1. Its methods do the same in pieces.

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
    _check_data(data, batch_size)
    train = Train(
        init,
        loss,
        optax.with_extra_args_support(optimizer),
        jax.tree.map(jnp.asarray, data),
        int(steps),
        batch_size,
        probes,
        int(record_every),
    )
    if not _required(_keywords(init, 1, "init") | _keywords(loss, 3, "loss")):
        train._check_loss(jax.eval_shape(init, jax.random.key(0)), {})
    return train


def _stacked(record: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], record)


def _strong(value: Any, params: PyTree) -> Array:
    """A hyperparameter as an array; a Python float, which has no type of its own, in that of the parameters."""
    value = jnp.asarray(value)
    if value.weak_type and jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.asarray(value, jnp.result_type(value, *jax.tree.leaves(params)))
    return jnp.asarray(value, value.dtype)


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        msg = f"{name}: got {value!r}, expected an integer of at least 1."
        raise ValueError(msg)


def _check_data(data: PyTree | None, batch_size: int | None) -> None:
    """An error where there are no rows, they do not match, or they are not finite."""
    leaves = tree.leaves(data)
    if not leaves:
        if batch_size is not None:
            msg = f"batch_size: got {batch_size}, but there is no data to take batches from; pass data or leave it out."
            raise ValueError(msg)
        return
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
