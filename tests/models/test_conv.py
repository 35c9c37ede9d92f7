"""Convolutional networks: parameter counts in closed form, the formula by loops, the two modes of batch norm."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsym.models import CNN, ResNet, ResNet50
from jaxsym.models.conv import ResidualBlock

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (3, 8, 8, 2))


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shapes(net, *shape):
    return jax.eval_shape(net.init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(("norm", "each"), [(None, 0), ("batch", 2), ("group", 2)])
def test_size_of_the_cnn(norm, each):
    variables = shapes(CNN((4, 6), 5, norm=norm), 1, 12, 8, 3)
    convolutions = 9 * (3 * 4 + 4 * 6) + 4 + 6
    assert size(variables["params"]) == convolutions + each * (4 + 6) + (3 * 2 * 6 + 1) * 5
    assert size(variables.get("batch_stats", {})) == (2 * (4 + 6) if norm == "batch" else 0)


def test_cnn_by_loops():
    net = CNN((3,), 2, activation="tanh")
    params = net.init(KEY, IMAGES)
    p = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, params["params"])  # biases, too
    padded = np.pad(np.asarray(IMAGES), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel, bias = p["Conv_0"]["kernel"], p["Conv_0"]["bias"]
    patches = [[padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for j in range(3)] for i in range(3)]
    h = np.tanh(np.sum(patches, (0, 1)) + bias)
    pooled = np.max([h[:, i::2, j::2] for i in range(2) for j in range(2)], 0)
    expected = pooled.reshape(3, -1) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    np.testing.assert_allclose(net.apply({"params": p}, IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_a_small_map_is_not_pooled_away():
    variables = shapes(CNN((2, 2, 2, 2, 2), 1), 1, 8, 8, 2)
    assert variables["params"]["Dense_0"]["kernel"].shape == (2, 1)


@pytest.mark.parametrize("train", [False, True])
def test_the_mode_of_batch_norm(train):
    """The statistics of the batch, not the running ones, forget the scale of what they see."""
    net = CNN((4,), 2, norm="batch")
    variables = net.init(KEY, IMAGES)
    larger = jax.tree.map(lambda leaf: leaf, variables)
    larger["params"]["Conv_0"] = jax.tree.map(lambda leaf: 100 * leaf, larger["params"]["Conv_0"])
    out, moved = net.apply(variables, IMAGES, train, mutable=["batch_stats"])
    scaled, _ = net.apply(larger, IMAGES, train, mutable=["batch_stats"])
    assert bool(jnp.allclose(out, scaled, rtol=1e-3, atol=1e-3)) == train
    same = jax.tree.map(jnp.array_equal, moved["batch_stats"], variables["batch_stats"])
    assert jax.tree.all(same) == (not train)


def test_group_norm_keeps_images_apart():
    net = CNN((4,), 2, norm="group")
    params = net.init(KEY, IMAGES)
    out = net.apply(params, IMAGES)
    more = net.apply(params, jnp.stack([IMAGES, 10 * IMAGES]))
    np.testing.assert_allclose(more[0], out, rtol=1e-4, atol=1e-5)


def test_size_of_resnet_50():
    variables = shapes(ResNet50(), 1, 224, 224, 3)
    channels, weights = 64, 49 * 3 * 64 + 2 * 64
    normalised = 64
    for blocks, width in zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True):
        for block in range(blocks):
            weights += channels * width + 9 * width**2 + width * 4 * width
            weights += channels * 4 * width if block == 0 else 0
            norms = 2 * width + 4 * width * (2 if block == 0 else 1)
            weights, normalised, channels = weights + 2 * norms, normalised + norms, 4 * width
    assert size(variables["params"]) == weights + 2048 * 1000 + 1000 == 25_557_032  # as in torchvision
    assert size(variables["batch_stats"]) == 2 * normalised


def test_the_strides_of_resnet_50():
    """Version 1.5: 3 x 3 convolutions halve the map; of the 1 x 1, only shortcuts do."""
    net, image = ResNet50(), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    closed = jax.make_jaxpr(net.apply)(shapes(net, *image.shape), image)
    convolutions = [eqn for eqn in closed.jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
    assert len(convolutions) == 49 + 4
    halving = [eqn.invars[1].aval.shape[:2] for eqn in convolutions if eqn.params["window_strides"] == (2, 2)]
    assert sorted(halving) == [(1, 1)] * 3 + [(3, 3)] * 3 + [(7, 7)]
    assert {eqn.outvars[0].aval.shape[1] for eqn in convolutions} == {112, 56, 28, 14, 7}


def test_a_small_resnet():
    net = ResNet((1, 2), (4, 6), 3, bottleneck=False)
    variables = shapes(net, *IMAGES.shape)
    blocks = 9 * (2 * 4**2 + 4 * 6 + 3 * 6**2) + 4 * 6
    norms = 2 * (4 + 2 * 4 + 5 * 6)
    assert size(variables["params"]) == 49 * 2 * 4 + blocks + norms + (6 + 1) * 3
    train = functools.partial(net.apply, train=True, mutable=["batch_stats"])
    out, moved = jax.eval_shape(train, variables, IMAGES)
    assert out.shape == (3, 3)
    assert moved["batch_stats"] == variables["batch_stats"]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_without_its_branch_a_block_passes_its_input_on(bottleneck):
    block = ResidualBlock(2, bottleneck=bottleneck)
    x = jnp.tile(IMAGES, 4 if bottleneck else 1)
    variables = block.init(KEY, x)
    last = variables["params"]["BatchNorm_2" if bottleneck else "BatchNorm_1"]
    assert not jnp.allclose(block.apply(variables, x), nn.relu(x))
    last["scale"] = jnp.zeros_like(last["scale"])
    np.testing.assert_array_equal(block.apply(variables, x), nn.relu(x))


@pytest.mark.parametrize(
    ("options", "message"), [({"norm": "layer"}, "expected None"), ({"activation": "rellu"}, "did you mean relu")]
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        CNN((4,), 2, **options)
