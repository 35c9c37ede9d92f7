"""The same work as ``contenders.py`` with torch: ``torch.func.vmap`` over stacked parameters, and modules one by one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from contenders import ALONE, FUNC, MODULES, RATES, Contender, Task, flat, problem
from torch.nn import functional

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def loss(params: Any, x: Any, labels: Any) -> Any:
    weights, biases, readout, offsets = params
    return functional.cross_entropy(torch.tanh(x @ weights + biases) @ readout + offsets, labels)


def tensors(arrays: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(array) for array in arrays)


def hessian_vector(params: Any, direction: Any, x: Any, labels: Any) -> Any:
    gradient = torch.func.grad(loss)
    return torch.func.jvp(lambda params: gradient(params, x, labels), (params,), (direction,))[1]


def stacked(task: Task) -> Contender:
    """All networks at once; an optimizer acts entry by entry, so that one serves them all."""
    given = problem(task.shape)
    x, labels = tensors((given.x, given.labels.astype(np.int64)))
    starts, directions = tensors(given.starts), tensors(given.directions)
    if task.kind == "hvp":
        product = torch.func.vmap(hessian_vector, in_dims=(0, 0, None, None))
        return Contender(
            lambda: product(starts, directions, x, labels), lambda result: flat(result, 1), task.shape.networks
        )
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None))
    losses = torch.func.vmap(loss, in_dims=(0, None, None))

    def train() -> Any:
        params = tuple(start.clone() for start in starts)
        rule = OPTIMIZERS[task.kind](params, lr=RATES[task.kind], fused=True)
        for _ in range(task.shape.steps):
            for leaf, gradient in zip(params, gradients(params, x, labels), strict=True):
                leaf.grad = gradient
            rule.step()
        return params, losses(params, x, labels)

    return Contender(train, lambda result: result[1].numpy()[:, None], task.shape.networks)


def modules(task: Task) -> Contender:
    """``nn.Module``, ``backward`` and an optimizer, network after network."""
    given, shape, networks = problem(task.shape), task.shape, min(ALONE, task.shape.networks)
    x, labels = tensors((given.x, given.labels.astype(np.int64)))
    network = torch.nn.Sequential(
        torch.nn.Linear(shape.inputs, shape.hidden), torch.nn.Tanh(), torch.nn.Linear(shape.hidden, shape.outputs)
    )
    params = list(network.parameters())

    def transposed(leaves: Any, index: int) -> list[torch.Tensor]:  # a Linear holds [outputs, inputs]
        return [torch.from_numpy(np.ascontiguousarray(leaf[index].T)) for leaf in leaves]

    starts = [transposed(given.starts, i) for i in range(networks)]
    directions = [transposed(given.directions, i) for i in range(networks)]

    def place(start: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for leaf, value in zip(params, start, strict=True):
                leaf.copy_(value)

    def products() -> Any:
        result = []
        for start, direction in zip(starts, directions, strict=True):
            place(start)
            value = functional.cross_entropy(network(x), labels)
            gradient = torch.autograd.grad(value, params, create_graph=True)
            result.append(torch.autograd.grad(gradient, params, grad_outputs=direction))
        return result

    def train() -> Any:
        losses = []
        for start in starts:
            place(start)
            rule = OPTIMIZERS[task.kind](params, lr=RATES[task.kind], fused=True)
            for _ in range(shape.steps):
                rule.zero_grad()
                functional.cross_entropy(network(x), labels).backward()
                rule.step()
            with torch.no_grad():
                losses.append(functional.cross_entropy(network(x), labels))
        return losses

    if task.kind == "hvp":
        return Contender(
            products, lambda result: np.stack([flat([leaf.numpy().T for leaf in tree], 0) for tree in result]), networks
        )
    return Contender(train, lambda result: torch.stack(result).numpy()[:, None], networks)


def torch_peers(task: Task) -> dict[str, Callable[[], Contender]]:
    return {FUNC: lambda: stacked(task), MODULES: lambda: modules(task)}
