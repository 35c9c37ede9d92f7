"""Products against matrices that are written down by other means: whole Hessians and Jacobians, one row after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym.curvature import block, empirical_fisher_vp, fisher_vp, ggn_vp, hvp
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide

NET = js.models.MLP((3, 2), "tanh")
ROWS = 7


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def case(float64):
    """Data, parameters and a direction: ``loss(params, batch)`` is a mean over rows."""
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (ROWS, 4))
    labels = jax.random.randint(keys[1], (ROWS,), 0, 2)
    params = wide(perturbed(keys[2], NET.init(keys[3], x)))
    flat, back = ravel_pytree(params)
    v = back(jax.random.normal(keys[4], flat.shape))
    return params, v, (x, labels)


def loss_of_outputs(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()


def apply(params, batch):
    return NET.apply(params, batch[0])


def loss(params, batch):
    return loss_of_outputs(apply(params, batch), batch)


def as_vector(tree):
    return np.asarray(ravel_pytree(tree)[0])


def jacobian(fn, params):
    """``[outputs, P]``, one backward pass an output."""
    flat, back = ravel_pytree(params)
    return np.asarray(jax.jacrev(lambda flat: jnp.ravel(fn(back(flat))))(flat))


def expected(kind, params, batch):
    """The matrix, by its definition."""
    flat, back = ravel_pytree(params)
    if kind == "hvp":
        return np.asarray(jax.jacrev(jax.jacrev(lambda flat: loss(back(flat), batch)))(flat))
    outputs = np.asarray(apply(params, batch))
    rows = jacobian(lambda params: apply(params, batch), params).reshape(ROWS, 2, -1)
    p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    if kind in ("ggn", "categorical"):
        middle = np.stack([np.diag(q) - np.outer(q, q) for q in p])
    elif kind == "bernoulli":
        q = 1 / (1 + np.exp(-outputs))
        middle = np.stack([np.diag(a * (1 - a)) for a in q])
    elif kind == "normal":
        middle = np.stack([np.eye(2)] * ROWS)
    else:
        away = p - np.eye(2)[np.asarray(batch[1])]
        middle = np.stack([np.outer(a, a) for a in away])
    return np.einsum("rip,rij,rjq->pq", rows, middle, rows) / ROWS


def product(kind, params, v, batch, **options):
    if kind == "hvp":
        return hvp(loss, params, v, data=batch, **options)
    if kind == "ggn":
        return ggn_vp(apply, loss_of_outputs, params, v, data=batch, **options)
    if kind == "empirical":
        each = lambda params, batch: optax.softmax_cross_entropy_with_integer_labels(apply(params, batch), batch[1])  # noqa: E731
        return empirical_fisher_vp(each, params, v, data=batch, **options)
    return fisher_vp(apply, kind, params, v, data=batch, **options)


KINDS = ("hvp", "ggn", "categorical", "bernoulli", "normal", "empirical")


@pytest.mark.parametrize("batch_size", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_matrix_times_the_vector(case, kind, batch_size):
    params, v, batch = case
    want = expected(kind, params, batch) @ as_vector(v)
    got = jax.jit(lambda v: product(kind, params, v, batch, batch_size=batch_size))(v)
    np.testing.assert_allclose(as_vector(got), want, rtol=0, atol=1e-13 * abs(want).max())


def test_the_curvatures_of_this_case_differ(case):
    params, v, batch = case
    found = [as_vector(product(kind, params, v, batch)) for kind in KINDS if kind != "categorical"]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert abs(one - other).max() > 1e-3 * abs(one).max()


def test_linearized_and_vmapped_are_the_same(case):
    params, v, batch = case
    vs = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), v)
    plain = jax.vmap(lambda v: hvp(loss, params, v, data=batch))(vs)
    linear = jax.vmap(lambda v: hvp(loss, params, v, data=batch, batch_size=2, linearize=True))(vs)
    np.testing.assert_allclose(as_vector(linear), as_vector(plain), rtol=0, atol=1e-14)


@pytest.mark.long
def test_drawn_targets_give_the_fisher_information_on_average_whatever_the_batches(case):
    params, v, batch = case
    key = jax.random.key(5)
    for kind in ("categorical", "bernoulli", "normal"):
        many = as_vector(product(kind, params, v, batch, key=key, num=40000))
        want = as_vector(product(kind, params, v, batch))
        assert abs(many - want).max() < 0.03 * abs(want).max()
        few = [as_vector(product(kind, params, v, batch, key=key, num=2, batch_size=size)) for size in (None, 3)]
        np.testing.assert_allclose(*few, rtol=0, atol=1e-14)
        assert abs(few[0] - want).max() > 1e-3 * abs(want).max()


@pytest.mark.parametrize("where", ["params/Dense_1", "params/Dense_0/bias", "params"])
def test_a_block_is_a_block_of_the_whole(case, where):
    params, _, batch = case
    restricted, part = block(lambda params: loss(params, batch), params, where)
    flat, back = ravel_pytree(params)
    marked = as_vector(
        jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full(leaf.shape, float(js.tree.name(path).startswith(where))), params
        )
    )
    inside = np.flatnonzero(marked)
    whole = expected("hvp", params, batch)[np.ix_(inside, inside)]
    size = ravel_pytree(part)[0].size
    assert size == len(inside)
    columns = [as_vector(hvp(restricted, part, ravel_pytree(part)[1](row))) for row in np.eye(size)]
    np.testing.assert_allclose(np.stack(columns), whole, rtol=0, atol=1e-14)
    again, _ = block(lambda params: loss(params, batch), params, lambda path: path.startswith(where))
    assert float(again(part)) == float(restricted(part)) == float(loss(params, batch))
    assert flat.size == as_vector(back(flat)).size


def test_a_sum_over_many_batches_in_half_precision():
    """Added up in bfloat16 it would stand still at a quarter."""
    one = jnp.ones((), jnp.bfloat16)
    found = hvp(lambda p, b: (b * p**2).mean() / 2, one, one, data=jnp.ones(2000, jnp.bfloat16), batch_size=1)
    assert found.dtype == jnp.bfloat16
    assert float(found) == pytest.approx(1, rel=0.01)


class TestBadInput:
    def test_nan(self):
        one, wrong = {"w": jnp.ones(2)}, {"w": jnp.array([1.0, jnp.nan])}

        def loss(p):
            return (p["w"] ** 3).sum()

        with pytest.raises(ValueError, match=r"hvp: params/w .* has 1 entries that are NaN"):
            hvp(loss, wrong, one)
        with pytest.raises(ValueError, match=r"hvp: v/w .* has 1 entries that are NaN"):
            hvp(loss, one, wrong)
        with pytest.raises(ValueError, match=r"hvp: the product .* has 1 entries that are NaN"):
            hvp(lambda x: jnp.sqrt(x).sum(), jnp.array([0.0, 1.0]), jnp.ones(2))

    def test_no_draws(self, case):
        params, v, batch = case
        with pytest.raises(ValueError, match="fisher_vp: num: got 0, expected an int of at least 1"):
            fisher_vp(apply, "categorical", params, v, key=jax.random.key(0), num=0, data=batch)
        with pytest.raises(TypeError, match="fisher_vp: key is int"):
            fisher_vp(apply, "categorical", params, v, key=1, data=batch)

    def test_a_loss_that_is_no_scalar(self, case):
        params, v, batch = case
        with pytest.raises(ValueError, match=r"hvp: the loss is float64\[7, 2\], expected one real number"):
            hvp(apply, params, v, data=batch)

    def test_integers_among_the_parameters(self):
        with pytest.raises(TypeError, match="hvp: step has dtype int"):
            hvp(lambda p: p["w"] ** 2, {"w": jnp.ones(()), "step": 3}, {"w": jnp.ones(()), "step": 3})

    def test_a_vector_of_another_shape_or_structure(self, case):
        params, v, batch = case
        wrong = jax.tree.map(lambda leaf: leaf[..., :1], v)
        with pytest.raises(ValueError, match=r"hvp: params/Dense_0/bias of v is float64\[1\], expected float64\[3\]"):
            hvp(loss, params, wrong, data=batch)
        with pytest.raises(
            ValueError, match="hvp: v has the leaves bias, kernel, expected those of params: params/Dense_0"
        ):
            hvp(loss, params, v["params"]["Dense_0"], data=batch)

    def test_a_vector_in_another_container(self):
        with pytest.raises(ValueError, match=r"hvp: v is PyTreeDef\(\[\*\]\), expected PyTreeDef\(\(\*,\)\) as params"):
            hvp(lambda p: p[0] ** 2, (jnp.ones(()),), [jnp.ones(())])

    def test_batches_without_data(self):
        with pytest.raises(ValueError, match="hvp: batch_size: got 3 without data"):
            hvp(lambda p: p**2, jnp.ones(()), jnp.ones(()), batch_size=3)

    @pytest.mark.parametrize(
        ("likelihood", "outputs", "wanted"),
        [("categorical", jnp.ones(3), r"\[N, classes\]"), ("normal", jnp.ones(()), r"\[N, \.\.\.\]")],
    )
    def test_outputs_without_rows(self, likelihood, outputs, wanted):
        with pytest.raises(ValueError, match=f"fisher_vp: apply returns shape .*, expected {wanted}"):
            fisher_vp(lambda w: w * outputs, likelihood, jnp.ones(()), jnp.ones(()))

    @pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
    def test_a_batch_size(self, case, batch_size):
        params, v, batch = case
        with pytest.raises(ValueError, match="hvp: batch_size: got"):
            hvp(loss, params, v, data=batch, batch_size=batch_size)

    def test_rows_that_differ(self, case):
        params, v, (x, labels) = case
        with pytest.raises(
            ValueError,
            match=r"hvp: data: got 0 \[7\], 1 \[6\], expected leaves \[N, ...\] with the same number of rows",
        ):
            hvp(loss, params, v, data=(x, labels[:6]))

    def test_a_likelihood_that_is_not_there(self, case):
        params, v, batch = case
        with pytest.raises(
            ValueError, match="likelihood: got 'poisson', expected one of categorical, bernoulli, normal"
        ):
            fisher_vp(apply, "poisson", params, v, data=batch)

    def test_a_mean_where_each_row_is_wanted(self, case):
        params, v, batch = case
        with pytest.raises(ValueError, match=r"losses has shape \(\), expected \[N\]"):
            empirical_fisher_vp(loss, params, v, data=batch)

    def test_a_block_that_is_not_there(self, case):
        params, _, _ = case
        with pytest.raises(ValueError, match=r"no leaf at 'Dense_0'; there are params/Dense_0/bias"):
            block(lambda params: 0.0, params, "Dense_0")

    def test_outputs_that_have_no_derivatives(self):
        w, counted = jnp.ones(3), lambda w: (w, jnp.arange(3))
        with pytest.raises(TypeError, match=r"ggn_vp: 1 of apply has dtype int.*, expected a floating one"):
            ggn_vp(counted, lambda outputs: outputs[0].sum(), w, w)
        with pytest.raises(TypeError, match="fisher_vp: 1 of apply has dtype int"):
            fisher_vp(counted, "normal", w, w)
        with pytest.raises(TypeError, match="fisher_vp: apply returns 2 arrays, expected one"):
            fisher_vp(lambda w: {"a": w, "b": w}, "normal", w, w)

    def test_functions_without_forward_derivatives(self):
        @jax.custom_vjp
        def square(x):
            return x**2

        square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
        w = jnp.arange(1.0, 4.0)
        np.testing.assert_allclose(hvp(lambda w: square(w).sum(), w, w), 2 * w)
        with pytest.raises(TypeError, match=r"ggn_vp: the function calls one with jax\.custom_vjp"):
            ggn_vp(square, jnp.sum, w, w)

    def test_an_infinite_slope(self):
        with pytest.raises(
            ValueError, match=r"hvp: the product .* has 2 entries that are NaN or infinite.* look at the loss"
        ):
            hvp(lambda w: jnp.sqrt(w).sum(), jnp.zeros(2), jnp.ones(2))
