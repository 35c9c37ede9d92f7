"""Computing on the host: NumPy in, NumPy out, so that nothing compiles; single equations in any precision, and noise."""

import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Array, Float, Int

from jaxsym.symmetry.trace import Equation


def namespace(*arrays: Any) -> Any:
    """NumPy where all arrays are NumPy's, so that nothing compiles on the host; ``jax.numpy`` otherwise."""
    return np if all(isinstance(array, np.ndarray | np.generic) for array in arrays) else jnp


def index(where: Int[np.ndarray, "..."], tensor: Any) -> Int[np.ndarray, "..."]:
    """Positions in a tensor: in one of JAX's in 32 bits and made anew, because it keeps an index once converted, at the precision switched on then."""
    return where if isinstance(tensor, np.ndarray) else where.astype(np.int32)


def run(equation: Equation, inputs: list[Array]) -> Any:
    """One equation in the precision of its operands, whatever precision it was traced in."""
    on_host = namespace(*inputs) is np
    known = [value.constant is not None for value in equation.inputs]  # constants take the precision of the others
    given = [x for x, constant in zip(inputs, known, strict=True) if not constant] or inputs
    floating = [x.dtype for x in given if jnp.issubdtype(x.dtype, jnp.floating)]
    if (
        equation.primitive == "convert_element_type"
        and floating
        and jnp.issubdtype(equation.outputs[0].dtype, jnp.floating)
    ):
        return inputs[0]
    if floating:
        widest = min(floating, key=lambda dtype: jnp.finfo(dtype).eps)
        inputs = [x.astype(widest) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in inputs]
    if equation.primitive == "dot_general":
        left, right = inputs
        result = jax.lax.dot_general(left, right, equation.params["dimension_numbers"], precision="highest")
    else:
        assert equation.bind is not None
        results = equation.bind(*map(jnp.asarray, inputs))
        result = results[0] if isinstance(results, list | tuple) else results
    return np.asarray(result) if on_host and not isinstance(result, jax.core.Tracer) else result


def svd(matrix: Float[np.ndarray, "n m"], *, full: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular values and vectors, by LAPACK's slower method where the fast one does not converge."""
    try:
        return np.linalg.svd(matrix, full_matrices=full)
    except np.linalg.LinAlgError:
        return scipy.linalg.svd(matrix, full_matrices=full, lapack_driver="gesvd")


def uniform(seed: str, size: int) -> Float[np.ndarray, " size"]:
    """Uniform noise inside (0, 1) on the host, where nothing compiles."""
    words = np.frombuffer(random.Random(seed).randbytes(8 * size), "<u8")
    return ((words >> np.uint64(12)) + 0.5) / 2.0**52


def normal(seed: str, size: int) -> Float[np.ndarray, " size"]:
    """Standard normal noise on the host."""
    return scipy.special.ndtri(uniform(seed, size))
