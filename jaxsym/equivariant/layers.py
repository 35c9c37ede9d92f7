"""Flax layers that commute with a group: their weights are shared, so that gradients of linked weights add up in the shared parameter."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsym.equivariant.bases import MEMORY, basis
from jaxsym.equivariant.representations import Representation


class TiedDense(nn.Module):
    """``y = (alpha I + beta 11') x + gamma 1``: what is linear and commutes with all permutations of the last axis.

    Parameters ``alpha``, ``beta`` and, with ``use_bias``, ``gamma`` are numbers; with ``features``, ``[channels, features]``, and ``[features, 1]`` for
    ``gamma``. Inputs may be of any length.

    Parameters
    ----------
    features
        Channels of the outputs, where inputs are ``[..., channels, n]``; None where they are ``[..., n]``.
    use_bias
        Whether there is a bias.

    Notes
    -----
    *Source*: Zaheer et al. 2017, lemma 3, arXiv:1703.06114.

    Examples
    --------
    >>> layer = TiedDense()
    >>> params = layer.init(jax.random.key(0), jnp.ones(5))
    >>> sorted(params["params"]), layer.apply(params, jnp.ones((7, 5))).shape
    (['alpha', 'beta', 'gamma'], (7, 5))
    >>> TiedDense(8).init_with_output(jax.random.key(0), jnp.ones((7, 3, 5)))[0].shape
    (7, 8, 5)
    """

    features: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Outputs of the same length."""
        x = _checked(x, None, self.features, "TiedDense")
        n, total = x.shape[-1], x.sum(-1, keepdims=True)
        alpha = _weights(self, "alpha", self.features, x)
        beta = _weights(self, "beta", self.features, x, spread=1 / n)
        y = alpha * x + beta * total if self.features is None else _mixed(alpha, x) + _mixed(beta, total)
        if not self.use_bias:
            return y
        shape = () if self.features is None else (self.features, 1)
        return y + self.param("gamma", jax.nn.initializers.zeros, shape, x.dtype)


class TiedQuadratic(nn.Module):
    """``y = (A x) . x + B x + C``: what is quadratic and commutes with all permutations of the last axis.

    With ``s`` the sum of the inputs and ``q`` that of their squares, ``y_k = a0 x_k^2 + a1 x_k s + a2 s^2 + a3 q + b0 x_k + b1 s + c``: seven parameters from
    three inputs on; six for two, where ``q`` depends on the other three, and three for one. Where inputs have more axes, each row is a set of its own,
    with the same parameters for all.

    Notes
    -----
    *Source*: Yan King Yin 2019, "Symmetric neural networks", whose colours are more than these.

    Examples
    --------
    >>> layer = TiedQuadratic()
    >>> params = layer.init(jax.random.key(0), jnp.ones(5))
    >>> {name: leaf.shape for name, leaf in params["params"].items()}
    {'quadratic': (4,), 'linear': (2,), 'constant': ()}
    """

    @nn.compact
    def __call__(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """Outputs of the same shape."""
        x = _checked(x, None, None, "TiedQuadratic")
        n = x.shape[-1]
        s, q = x.sum(-1, keepdims=True), (x**2).sum(-1, keepdims=True)
        squares = [x**2, x * s, s**2, q][: {1: 1, 2: 3}.get(n, 4)]
        sizes = jnp.array([1, 1 / n, 1 / n**2, 1 / n][: len(squares)], x.dtype) / 2
        quadratic = self.param("quadratic", _scaled(sizes), (len(squares),), x.dtype)
        linear = self.param("linear", _scaled(jnp.array([1, 1 / n][: min(n, 2)], x.dtype) / 2), (min(n, 2),), x.dtype)
        y = sum(a * term for a, term in zip(quadratic, squares, strict=True))
        y += sum(b * term for b, term in zip(linear, [x, s], strict=False))
        return y + self.param("constant", jax.nn.initializers.zeros, (), x.dtype)


class EquivariantDense(nn.Module):
    """``y = W x + b`` with ``W`` among all maps that commute with a group and ``b`` among all vectors that it leaves alone.

    Parameters ``coefficients`` ``[basis(rep_in, rep_out).dimension]`` and, where there are such vectors, ``bias``; with ``features``,
    ``[channels, features, dimension]`` and ``[features, basis(scalar, rep_out).dimension]``. They start so that outputs are of the inputs' size.

    Parameters
    ----------
    rep_in, rep_out
        Representations of one group.
    features
        Channels of the outputs, where inputs are ``[..., channels, rep_in.size]``; None where they are ``[..., rep_in.size]``.
    use_bias
        Whether there is a bias.
    memory
        Gibibytes that a basis may take.

    Raises
    ------
    ValueError
        If the inputs' last axis is not ``rep_in.size``, the representations are of different groups, or no map but 0 commutes.

    Notes
    -----
    *Source*: Finzi, Welling, Wilson 2021, arXiv:2104.09459. Between such layers stands what commutes with the group too: any function of single coordinates
    where the group permutes them, an odd one where it also flips signs.

    Examples
    --------
    >>> from jaxsym.equivariant import S
    >>> V = S(5).vector
    >>> layer = EquivariantDense(V, V * V)
    >>> params = layer.init(jax.random.key(0), jnp.ones(5))
    >>> {name: leaf.shape for name, leaf in params["params"].items()}
    {'coefficients': (5,), 'bias': (2,)}
    >>> EquivariantDense(V, V, features=8).init_with_output(jax.random.key(0), jnp.ones((7, 3, 5)))[0].shape
    (7, 8, 5)
    """

    rep_in: Representation
    rep_out: Representation
    features: int | None = None
    use_bias: bool = True
    memory: float = MEMORY

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Outputs ``[..., rep_out.size]``."""
        maps = basis(self.rep_in, self.rep_out, self.memory)
        fixed = basis(maps.rep_out.group.scalar, maps.rep_out, self.memory)
        outputs, inputs = maps.shape
        x = _checked(x, inputs, self.features, f"EquivariantDense from {maps.rep_in.text()}")
        if not maps.dimension:
            msg = f"EquivariantDense: no map but 0 from {maps.rep_in.text()} to {maps.rep_out.text()} commutes with {maps.rep_in.group.name}; take other representations, such as tensor products."
            raise ValueError(msg)
        scale = float(np.sqrt(outputs / maps.dimension))  # outputs are of the inputs' size, as with a dense kernel
        each = maps.map(scale * _weights(self, "coefficients", self.features, x, maps.dimension))
        y = x @ each.T if self.features is None else jnp.einsum("...ci,cfoi->...fo", x, each)
        if not self.use_bias or not fixed.dimension:
            return y
        leading = () if self.features is None else (self.features,)
        bias = self.param("bias", jax.nn.initializers.zeros, (*leading, fixed.dimension), x.dtype)
        return y + fixed.map(bias)[..., 0]


def _weights(
    layer: nn.Module, name: str, features: int | None, x: Float[Array, "..."], *shape: int, spread: float = 1.0
) -> Array:
    """Normal weights, smaller the more channels they add up."""
    leading = () if features is None else (x.shape[-2], features)
    spread /= 1.0 if features is None else x.shape[-2] ** 0.5
    return layer.param(name, jax.nn.initializers.normal(spread), (*leading, *shape), x.dtype)


def _scaled(sizes: Float[Array, " terms"]) -> Callable[..., Array]:
    """Normal weights, each of a size of its own: sums over many inputs are large."""
    return lambda key, shape, dtype: sizes * jax.random.normal(key, shape, dtype)


def _mixed(weights: Float[Array, "c f"], x: Float[Array, "*batch c n"]) -> Float[Array, "*batch f n"]:
    return jnp.einsum("...ci,cf->...fi", x, weights)


def _checked(x: Float[Array, "..."], size: int | None, features: int | None, who: str) -> Array:
    """Inputs as floating numbers; refuses those without the axes that a layer wants, or of another length, and features that are no number of channels."""
    if features is not None and (
        not isinstance(features, int | np.integer) or isinstance(features, bool) or features < 1
    ):
        msg = f"{who}: features is {features!r}, expected a positive integer, the number of channels, or None for inputs without that axis."
        raise ValueError(msg)
    if isinstance(x, Mapping):
        msg = f"{who}: inputs are a {type(x).__name__}, expected an array; make one row of a network's parameters by jax.flatten_util.ravel_pytree."
        raise TypeError(msg)
    x = jnp.asarray(x)
    if x.ndim < (1 if features is None else 2) or not x.shape[-1] or (size is not None and x.shape[-1] != size):
        channels = "" if features is None else "channels, "
        msg = f"{who}: inputs have shape {x.shape}, expected [..., {channels}{'n' if size is None else size}]; the axes of a tensor product are one axis here, its first factor the slow one."
        raise ValueError(msg)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)
