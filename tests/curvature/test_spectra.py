"""Spectra, traces and densities against NumPy on matrices that are known."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym.curvature import checks, density, ggn_vp, hessian, spectrum, trace
from jaxsym.curvature.spectra import krylov
from jaxsym.symmetry.draws import perturbed

X = jax.random.normal(jax.random.key(0), (20, 3))
NET = js.models.MLP((4, 2), "tanh")
PARAMS = perturbed(jax.random.key(1), NET.init(jax.random.key(2), X))


def loss(params):
    return (NET.apply(params, X) ** 2).mean()


def quadratic(eigenvalues, seed=0):
    """``x' A x / 2`` with these eigenvalues in a random basis, and ``A``."""
    size = len(eigenvalues)
    basis = np.linalg.qr(np.random.RandomState(seed).randn(size, size))[0]
    matrix = (basis * eigenvalues) @ basis.T
    matrix = (matrix + matrix.T) / 2
    return lambda x: x @ jnp.asarray(matrix) @ x / 2, matrix


@pytest.fixture
def sparse(monkeypatch):
    """Krylov methods for small matrices too."""
    monkeypatch.setattr(importlib.import_module("jaxsym.curvature.spectra"), "DENSE", 0)


def test_the_hessian_is_that_of_two_backward_passes():
    with jax.enable_x64(True):
        flat, back = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(float), PARAMS))
        want = np.asarray(jax.jacrev(jax.jacrev(lambda flat: loss(back(flat))))(flat))
    got = hessian(loss, PARAMS)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


def test_under_jit_it_is_in_the_precision_of_the_parameters():
    got = jax.jit(lambda params: hessian(loss, params))(PARAMS)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, hessian(loss, PARAMS), rtol=0, atol=1e-6)


def test_all_eigenvalues_and_their_residuals():
    eigenvalues = np.array([-2.0, -1e-9, 0, 0, 1, 1, 5])
    fn, matrix = quadratic(eigenvalues)
    found = spectrum(fn, jnp.ones(7))
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(matrix), rtol=0, atol=1e-14)
    assert found.residuals.max() < 1e-13
    assert found.orthogonality < 1e-13
    assert found.converged.all()


@pytest.mark.parametrize(
    ("which", "want"), [("magnitude", [-3.0, 4, 5]), ("largest", [2.0, 4, 5]), ("smallest", [-3.0, -2, -1])]
)
def test_which(which, want):
    fn, _ = quadratic([-3.0, -2, -1, 0, 2, 4, 5])
    found = spectrum(fn, jnp.ones(7), 3, which=which)
    np.testing.assert_allclose(found.eigenvalues, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "which", ["magnitude", *(pytest.param(which, marks=pytest.mark.long) for which in ("largest", "smallest"))]
)
def test_krylov_finds_the_extreme_ones_with_their_copies(sparse, which):
    bulk = np.linspace(-1, 1, 290)
    eigenvalues = np.sort(np.concatenate([[-9.0, -9, -7, -5, -5], bulk, [6.0, 8, 8, 8, 10]]))
    fn, _ = quadratic(eigenvalues)
    found = spectrum(fn, jnp.ones(300), 5, which=which)
    rank = {"magnitude": abs(eigenvalues), "largest": eigenvalues, "smallest": -eigenvalues}[which]
    want = np.sort(eigenvalues[np.argsort(rank, stable=True)[-5:]])
    np.testing.assert_allclose(found.eigenvalues, want, rtol=0, atol=1e-6)
    assert found.converged.all()
    assert (abs(found.eigenvalues - want) <= found.residuals + 1e-12).all()
    assert found.orthogonality < 1e-12


def test_what_is_not_converged_says_so(sparse):
    fn, _ = quadratic(np.linspace(0, 1, 300) ** 0.2)
    found = spectrum(fn, jnp.ones(300), 5, num_matvecs=6, multiplicities=False)
    assert not found.converged.all()
    assert found.residuals.max() > 1e-3


FEW = {"multiple": np.full(60, 3.0), "three": np.repeat([-1.0, 0, 4], 20), "rank 1": np.r_[np.zeros(59), 2.0]}


@pytest.mark.parametrize("name", FEW)
def test_a_breakdown_is_no_eigenvalue(name):
    _, matrix = quadratic(FEW[name])
    with jax.enable_x64(True):
        found = krylov(lambda v: jnp.asarray(matrix) @ v, jax.random.normal(jax.random.key(0), (60,)), 30)
    known = np.asarray(found.ritz)[np.isfinite(found.ritz)]
    np.testing.assert_allclose(known, np.unique(FEW[name]), rtol=0, atol=1e-12)
    assert np.asarray(found.residuals)[: len(known)].max() < 1e-12
    assert np.asarray(found.basis)[len(known) :].any() == False  # noqa: E712


@pytest.mark.long
@pytest.mark.parametrize("name", FEW)
def test_copies_are_found_where_lanczos_breaks_down(sparse, name):
    eigenvalues = FEW[name]
    fn, _ = quadratic(eigenvalues)
    distinct = np.unique(eigenvalues)
    extreme = spectrum(fn, jnp.ones(60), 3)
    rank = np.sort(eigenvalues[np.argsort(abs(eigenvalues), stable=True)[-3:]])
    np.testing.assert_allclose(extreme.eigenvalues, rank, rtol=0, atol=1e-8)
    once = spectrum(
        fn, jnp.ones(60), 3, multiplicities=False
    )  # one start sees one copy of each, and says what is missing
    np.testing.assert_allclose(np.unique(once.eigenvalues[np.isfinite(once.eigenvalues)]), distinct, rtol=0, atol=1e-12)
    assert (once.converged == np.isfinite(once.eigenvalues)).all()


@pytest.mark.parametrize("which", [pytest.param("magnitude", marks=pytest.mark.long), "largest"])
def test_a_matrix_that_is_zero_has_as_many_copies_as_asked_for(sparse, which):
    found = spectrum(lambda x: 0 * jnp.sum(x**2), jnp.ones(40), 3, which=which)
    np.testing.assert_array_equal(found.eigenvalues, 0)
    assert found.converged.all()


def test_an_exact_breakdown(sparse):
    """A start in a single invariant line: the next vector is exactly zero, and NaN without a guard."""
    with jax.enable_x64(True):
        found = krylov(lambda v: 2 * v, jnp.zeros(4).at[1].set(3.0), 4)
    np.testing.assert_array_equal(np.asarray(found.ritz), [2, np.nan, np.nan, np.nan])
    assert np.isfinite(np.asarray(found.basis)).all()


def test_many_networks_at_once():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 6)
        many = jax.vmap(lambda key: perturbed(key, jax.tree.map(lambda leaf: leaf.astype(float), PARAMS)))(keys)
        found = js.parallel(lambda params: spectrum(loss, params), chunk=2)(many)
        for i in range(6):
            one = np.linalg.eigvalsh(hessian(loss, jax.tree.map(lambda leaf: leaf[i], many)))  # noqa: B023
            np.testing.assert_allclose(found.eigenvalues[i], one, rtol=0, atol=1e-13)


def test_another_matrix_than_the_hessian():
    def product(params, v):
        return ggn_vp(lambda params: NET.apply(params, X), lambda outputs: (outputs**2).mean(), params, v)

    found = spectrum(None, PARAMS, product=product)
    assert found.eigenvalues.min() > -1e-14
    assert abs(found.eigenvalues - spectrum(loss, PARAMS).eigenvalues).max() > 1e-3
    with jax.enable_x64(True):
        flat, back = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(float), PARAMS))
        rows = np.asarray(jax.jacrev(lambda flat: NET.apply(back(flat), X).ravel())(flat))
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(rows.T @ rows * 2 / 40), rtol=0, atol=1e-13)
    exact = trace(None, PARAMS, jax.random.key(0), 20, product=product)
    np.testing.assert_allclose(exact.value, found.eigenvalues.sum(), rtol=1e-12)


class TestTrace:
    @pytest.mark.parametrize("semidefinite", [False, True])
    def test_it_is_within_its_errors(self, semidefinite):
        eigenvalues = np.r_[np.linspace(0, 1, 195) if semidefinite else np.linspace(-1, 1, 195), 20, 30, 40, 50, 60]
        fn, matrix = quadratic(eigenvalues)
        with jax.enable_x64(True):
            estimate = jax.jit(jax.vmap(lambda key: trace(fn, jnp.ones(200), key, 20, semidefinite=semidefinite)))
            found = jax.tree.map(np.asarray, estimate(jax.random.split(jax.random.key(0), 40)))
        errors, stated = found.value - np.trace(matrix), found.standard_error
        assert abs(errors.mean()) < 4 * errors.std() / 40**0.5
        assert (abs(errors) < 4 * stated).mean() > 0.9
        assert errors.std() < 0.1 * np.linalg.norm(eigenvalues)  # what XTrace is for: the large ones cost nothing

    @pytest.mark.parametrize(("first", "semidefinite", "ratio"), [(-20, False, 1.4), (1, True, 1.6)])
    def test_by_how_much_the_stated_error_is_small(self, first, semidefinite, ratio):
        eigenvalues = np.arange(first, first + 50.0)
        fn = lambda x: jnp.sum(x**2 * eigenvalues) / 2  # noqa: E731
        with jax.enable_x64(True):
            estimate = jax.jit(jax.vmap(lambda key: trace(fn, jnp.ones(50), key, 20, semidefinite=semidefinite)))
            found = jax.tree.map(np.asarray, estimate(jax.random.split(jax.random.key(0), 400)))
        scaled = (found.value - eigenvalues.sum()) / found.standard_error
        assert scaled.std() == pytest.approx(ratio, abs=0.15)  # as the docstring has it

    def test_half_as_many_samples_as_parameters_are_exact(self):
        fn, matrix = quadratic(np.linspace(-1, 2, 10))
        np.testing.assert_allclose(trace(fn, jnp.ones(10), jax.random.key(0), 5).value, np.trace(matrix), rtol=1e-13)

    @pytest.mark.parametrize("semidefinite", [False, True])
    @pytest.mark.parametrize(("size", "num"), [(1, None), (1, 1), (6, 2), (6, 4), (6, None)])
    def test_a_matrix_that_is_zero_and_one_of_few_numbers(self, size, num, semidefinite):
        still = trace(lambda x: 0 * jnp.sum(x**2), jnp.ones(size), jax.random.key(0), num, semidefinite=semidefinite)
        assert (still.value, still.standard_error) == (0, 0)
        if num is None:
            whole = trace(lambda x: jnp.sum(x**2), jnp.ones(size), jax.random.key(0), semidefinite=semidefinite)
            assert whole.value == pytest.approx(2 * size, rel=1e-6)

    @pytest.mark.parametrize("num", [0, 1, 11, 2.5, "a"])
    def test_a_number_of_samples_out_of_range(self, num):
        fn, _ = quadratic(np.linspace(-1, 2, 10))
        with pytest.raises(ValueError, match=r"trace: num: got .* from 2 to 10, the number of parameters"):
            trace(fn, jnp.ones(10), jax.random.key(0), num)

    @pytest.mark.parametrize("num", [4, 16, 20])
    def test_negative_eigenvalues_are_not_semidefinite(self, num):
        fn, _ = quadratic(np.repeat([1.0, -1.0], 10))
        with pytest.raises(ValueError, match="trace: semidefinite=True, and the matrix has negative eigenvalues"):
            trace(fn, jnp.ones(20), jax.random.key(0), num, semidefinite=True)
        with jax.enable_x64(True):
            inside = jax.jit(lambda x: trace(fn, x, jax.random.key(0), num, semidefinite=True).value)
            assert np.isnan(inside(jnp.ones(20)))

    def test_a_matrix_of_low_rank_is_semidefinite_in_float32_too(self):
        x = jax.random.normal(jax.random.key(0), (5, 40))
        found = jax.jit(
            lambda p: trace(None, p, jax.random.key(1), 16, semidefinite=True, product=lambda p, v: x.T @ (x @ v))
        )(jnp.zeros(40))
        assert found.value == pytest.approx(float((x**2).sum()), rel=1e-3)


class TestDensity:
    def test_its_moments_are_those_of_the_matrix(self):
        eigenvalues = np.r_[np.linspace(-1, 1, 95), 3, 3, 3, 4, 5]
        fn, matrix = quadratic(eigenvalues)
        found = density(fn, jnp.ones(100), jax.random.key(0), num_samples=400, num_matvecs=20)
        step = found.grid[1] - found.grid[0]
        assert abs(found.values.sum() * step - 1) < 0.01
        np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-12)
        for power in (1, 2):
            mean = (found.weights * np.nan_to_num(found.nodes) ** power).sum(1)
            assert abs(mean.mean() - (eigenvalues**power).mean()) < 4 * mean.std() / 400**0.5
        outliers = (found.values * (found.grid > 2)).sum() * step
        assert abs(outliers - 0.05) < 0.01
        assert float(found.broadening) == pytest.approx(0.01 * (found.nodes.max() - found.nodes.min()))
        assert np.trace(matrix) == pytest.approx(eigenvalues.sum())

    def test_a_breakdown_carries_no_weight(self):
        fn, _ = quadratic(np.repeat([0.0, 1.0], 15))
        found = density(fn, jnp.ones(30), jax.random.key(0), num_matvecs=20)
        assert (np.isfinite(found.nodes).sum(axis=1) == 2).all()
        assert (found.weights[:, 2:] == 0).all()
        assert np.isfinite(found.values).all()
        assert (found.values * (found.grid > 0.5)).sum() * (found.grid[1] - found.grid[0]) == pytest.approx(
            0.5, abs=0.15
        )

    @pytest.mark.parametrize("size", [0.0, 1e-20, 1.5, -3e8])
    def test_one_eigenvalue_integrates_to_one(self, size):
        """What rounding leaves between the nodes is no range of eigenvalues."""
        found = density(lambda x: size * (x**2).sum() / 2, jnp.ones(20), jax.random.key(0))
        assert np.trapezoid(found.values, found.grid) == pytest.approx(1, abs=0.01)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"num_matvecs": 31}, "num_matvecs: got 31"),
            ({"num_samples": 0}, "num_samples: got 0"),
            ({"broadening": 0.0}, "broadening: got 0.0"),
            ({"broadening": np.inf}, "broadening: got inf"),
            ({"num_matvecs": 2.5}, "num_matvecs: got 2.5"),
            ({"broadening": None}, "broadening: got None"),
            ({"broadening": 1e-4}, "num_points: got 1000, expected at least 10007"),
        ],
    )
    def test_numbers_out_of_range(self, options, said):
        fn, _ = quadratic(np.ones(30))
        with pytest.raises(ValueError, match=said):
            density(fn, jnp.ones(30), jax.random.key(0), **options)


class TestBadInput:
    @pytest.mark.parametrize("k", [0, 25, -1, True, 2.0, "a"])
    def test_k(self, k):
        with pytest.raises(ValueError, match=r"spectrum: k: got .* an int from 1 to 24, the number of parameters"):
            spectrum(lambda x: (x**2).sum(), jnp.ones(24), k)

    def test_a_matrix_that_does_not_fit(self, monkeypatch):
        monkeypatch.setattr(checks, "_free_bytes", lambda: 2**20)
        with pytest.raises(
            ValueError, match=r"hessian: 3000 x 1000 .* take 0.0 GiB, and 0.0 GiB are free; call spectrum with a k"
        ):
            hessian(lambda x: (x**2).sum(), jnp.ones(1000))

    def test_a_matrix_that_does_not_fit_here(self):
        with pytest.raises(ValueError, match=r"take 22351.7 GiB, and .* call spectrum with a k, trace or density"):
            hessian(lambda x: (x**2).sum(), jnp.ones(10**6))

    def test_nan_among_the_parameters(self):
        with pytest.raises(ValueError, match=r"spectrum: params/w \(float32\[2\]\) has 1 entries that are NaN"):
            spectrum(lambda p: (p["w"] ** 2).sum(), {"w": jnp.array([1.0, jnp.nan])})

    @pytest.mark.parametrize(
        "call",
        [
            hessian,
            spectrum,
            lambda *a: trace(*a, jax.random.key(0), 2),
            lambda *a: density(*a, jax.random.key(0), num_matvecs=2),
        ],
    )
    def test_nan_in_the_curvature(self, call):
        with pytest.raises(
            ValueError, match=r"products with vectors \(float64\[2\]\) has . entries that are NaN or infinite"
        ):
            call(lambda x: jnp.sqrt(x).sum(), jnp.array([1.0, 0.0]))

    def test_a_loss_of_rows(self):
        with pytest.raises(ValueError, match=r"hessian: the loss is float32\[2\], expected one real number"):
            hessian(lambda x: x**2, jnp.ones(2))

    def test_nothing_given(self):
        with pytest.raises(TypeError, match="spectrum: loss is None"):
            spectrum(None, jnp.ones(2))
        with pytest.raises(TypeError, match="spectrum: loss is of type str"):
            spectrum("loss", jnp.ones(2))
        with pytest.raises(ValueError, match="spectrum: which: got 'all'"):
            spectrum(lambda x: (x**2).sum(), jnp.ones(2), which="all")
        with pytest.raises(ValueError, match="hessian: params has no numbers"):
            hessian(lambda p: jnp.zeros(()), {})


class TestWhatFloat64WouldChange:
    @pytest.mark.parametrize("draw", [jax.random.normal, jax.random.gumbel, lambda k, s: jax.random.gamma(k, 2.0, s)])
    def test_random_numbers_inside_a_loss(self, draw):
        def loss(x):
            return ((x - draw(jax.random.key(0), (3,))) ** 2).sum()

        with pytest.raises(ValueError, match="hessian: the function draws random numbers, which in float64 are others"):
            hessian(loss, jnp.ones(3))
        with jax.enable_x64(True):
            np.testing.assert_allclose(hessian(loss, jnp.ones(3)), 2 * np.eye(3))

    def test_random_numbers_as_wide_as_the_parameters(self):
        def loss(x):
            return (x**2 * jax.random.normal(jax.random.key(0), (3,), x.dtype)).sum() / 2

        with jax.enable_x64(True):
            with pytest.raises(ValueError, match="hessian: the function draws random numbers"):
                hessian(loss, jnp.ones(3, jnp.float32))
            drawn = jax.random.normal(jax.random.key(0), (3,), float)
            np.testing.assert_allclose(np.diag(hessian(loss, jnp.ones(3))), drawn)

    def test_random_numbers_of_a_given_type_are_the_same(self):
        def loss(x):
            return (x**2 * jax.random.normal(jax.random.key(0), (3,), "float32")).sum() / 2

        np.testing.assert_allclose(
            np.diag(hessian(loss, jnp.ones(3))), jax.random.normal(jax.random.key(0), (3,)), rtol=1e-6
        )

    def test_arrays_in_float32_that_a_convolution_does_not_take(self):
        x = jnp.ones((1, 1, 4, 4))
        with pytest.raises(TypeError, match=r"hessian: with parameters in float64 the function fails: .* x.astype"):
            hessian(lambda w: (jax.lax.conv(x, w, (1, 1), "SAME") ** 2).sum(), jnp.ones((1, 1, 2, 2)))

        def loss(w):
            return (jax.lax.conv(x.astype(w.dtype), w, (1, 1), "SAME") ** 2).sum()

        assert hessian(loss, jnp.ones((1, 1, 2, 2)))[0, 0] == 2 * 16

    def test_half_precision_inside_jit(self):
        with pytest.raises(TypeError, match="hessian: params are bfloat16 inside of jit, expected float32 or float64"):
            jax.jit(lambda x: hessian(lambda x: (x**2).sum(), x))(jnp.ones(2, jnp.bfloat16))
        np.testing.assert_allclose(hessian(lambda x: (x**2).sum(), jnp.ones(2, jnp.bfloat16)), 2 * np.eye(2))


class TestProducts:
    @pytest.mark.parametrize(
        ("product", "error", "said"),
        [
            (lambda p, v: v**2, ValueError, "product is not linear in v: off by"),
            (lambda p, v: jnp.cumsum(v), ValueError, "product is not symmetric in v: off by"),
            (lambda p, v: v[:2], ValueError, r"what product returns is float64\[2\], expected float64\[3\]"),
            (
                lambda p, v: v.astype(jnp.float32),
                ValueError,
                r"what product returns is float32\[3\], expected float64\[3\]",
            ),
            (lambda p, v: v * jax.random.normal(jax.random.key(0), ()), ValueError, "draws random numbers"),
            (lambda p, v: v * jnp.nan, ValueError, "has 3 entries that are NaN"),
        ],
    )
    def test_one_that_is_no_symmetric_matrix(self, product, error, said):
        for call in (spectrum, trace, density):
            key = () if call is spectrum else (jax.random.key(0),)
            with pytest.raises(error, match=said):
                call(None, jnp.ones(3), *key, product=product)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: density(lambda x: (x**2).sum(), x, jax.random.key(0)),
        lambda x: trace(lambda x: (x**2).sum(), x, jax.random.key(0)),
        lambda x: spectrum(lambda x: (x**2).sum(), x, 5),
    ],
)
def test_bases_that_do_not_fit(call, monkeypatch):
    monkeypatch.setattr(checks, "_free_bytes", lambda: 2**20)
    with pytest.raises(ValueError, match=r"numbers of float64 take 0.. GiB, and 0.0 GiB are free; take fewer"):
        call(jnp.ones(10**5))


def test_a_matrix_is_no_product():
    with pytest.raises(TypeError, match=r"trace: product is of type ndarray, expected a function product\(params, v\)"):
        trace(None, jnp.ones(3), jax.random.key(0), product=np.eye(3))


def test_no_key():
    with pytest.raises(TypeError, match="trace: key is int, expected one key"):
        trace(lambda x: (x**2).sum(), jnp.ones(3), 3)
    with pytest.raises(TypeError, match=r"density: key is key<fry>\[2\], expected one key"):
        density(lambda x: (x**2).sum(), jnp.ones(3), jax.random.split(jax.random.key(0)))


def test_many_eigenvalues_of_many_parameters_have_their_copies(sparse):
    """From k = P / 5 on LOBPCG has no room, and the dense decomposition takes over."""
    eigenvalues = np.repeat([1.0, 2.0, 3.0], 10)
    fn, _ = quadratic(eigenvalues)
    found = spectrum(fn, jnp.ones(30), 15)
    np.testing.assert_allclose(found.eigenvalues, np.repeat([2.0, 3.0], [5, 10]), rtol=1e-10)
    assert found.converged.all()
    alone = spectrum(fn, jnp.ones(30), 15, multiplicities=False)
    assert (np.isnan(alone.eigenvalues) == ~alone.converged).all()
    assert np.isnan(alone.eigenvalues).sum() == 12


def test_derivatives_pass_through_alone_and_vmapped():
    """Of the largest eigenvalue, and of a trace: by central differences. What is closed over may be mapped, and integers."""
    with jax.enable_x64(True):
        points = jnp.array([0.3, 0.7])
        rows = jnp.array([[1, 2, 3], [2, 0, 1]])

        def loss(params, row):
            return jnp.sum(jnp.sin(params["w"] * row)) * params["s"][0] ** 2

        def largest(s, row):
            return spectrum(lambda p: loss(p, row), {"w": jnp.ones(3), "s": s[None]}).eigenvalues[-1]

        def total(s, row):
            return trace(lambda p: loss(p, row), {"w": jnp.ones(3), "s": s[None]}, jax.random.key(0), 2).value

        for fn in (largest, total):
            slopes = jax.jit(jax.vmap(jax.grad(fn)))(points, rows)
            values = [jax.jit(jax.vmap(fn))(points + step, rows) for step in (1e-5, -1e-5)]
            np.testing.assert_allclose(slopes, (values[0] - values[1]) / 2e-5, rtol=1e-6)
            np.testing.assert_allclose(values[0][1], fn(points[1] + 1e-5, rows[1]), rtol=1e-12)
