"""Networks with the group that theory says they have: one table for all tests of the symmetry package.

The networks are those of the study ``symmetry_zoo``; each entry names the factors of one as ``{(kind, size, copies): how many}``.
"""

from typing import NamedTuple

from jaxsym.studies import architectures
from jaxsym.studies.architectures import CATALOGUE, Stream, normal

KEY = architectures.start()
X = architectures.rows()
SEQUENCE = architectures.sequences()
IMAGES = architectures.images()
TOKENS = architectures.tokens()
ATTENTION = architectures.attention()


class Network(NamedTuple):
    """A function, its parameters and inputs, and the factors that it must have."""

    apply: object
    params: object
    inputs: tuple
    factors: dict


def pairs(*kinds):
    """One factor of each kind for each hidden layer of an MLP."""
    return {(kind, size, 1): 1 for kind in kinds for size in (4, 5)}


ODD = pairs("sign", "permutation")
VALUE = {("scaling", 4, 1): 1, ("sign", 4, 1): 1, ("permutation", 4, 1): 1}
HEADS = {("translation", 2, 2): 2, ("general_linear", 2, 2): 2, ("permutation", 2, 1): 1}
ATTENTION_BLOCK = {
    ("general_linear", 3, 2): 2,  # queries against keys, values against outputs
    ("permutation", 2, 1): 1,  # heads
    ("permutation", 5, 1): 1,  # hidden units
}
PERMUTED_CELL = {("sign", 5, 1): 1, ("permutation", 5, 1): 1}
SHIFTED = {("translation", 4, 1): 1, ("translation", 1, 1): 1}  # of a row of the kernel, and of the bias
CROSS_ENTROPY = SHIFTED | {("sign", 4, 1): 1, ("permutation", 4, 1): 1}
FACTORS = {
    "identity": pairs("general_linear", "translation"),
    **{name: pairs("scaling", "permutation") for name in ("relu", "leaky_relu", "prelu", "squared_relu")},
    **dict.fromkeys(("tanh", "sigmoid", "nnx", "equinox"), ODD),  # sigmoid: with a shift
    "sin": pairs("phase", "sign", "permutation"),
    **{name: pairs("permutation") for name in ("softplus", "gelu", "silu", "relu6")},
    **{name: pairs("scaling", "sign", "permutation") for name in ("square", "cube", "abs", "cube without bias")},
    "cnn": {
        ("scaling", 4, 1): 2,
        ("scaling", 5, 1): 1,
        ("sign", 4, 1): 1,
        ("permutation", 4, 1): 1,
        ("permutation", 5, 1): 1,
        ("translation", 4, 1): 1,  # the running mean, taken up by the bias after it
    },
    "grouped": {
        ("scaling", 2, 2): 1,
        ("sign", 2, 4): 1,
        ("permutation", 3, 2): 1,
        ("permutation", 2, 4): 1,
        ("permutation", 2, 2): 1,
        ("permutation", 2, 1): 1,
    },
    "swiglu": VALUE,
    "glu": VALUE,
    "separable": {
        ("scaling", 4, 1): 2,
        ("scaling", 6, 1): 1,
        ("sign", 4, 1): 1,
        ("translation", 4, 1): 1,
        ("permutation", 4, 1): 1,
        ("permutation", 6, 1): 1,
    },
    # the statistics are those of the batch: the stored ones are not used
    "cnn in training": {
        (kind, size, 1): 1 for kind in ("scaling", "sign", "translation", "permutation") for size in (4, 6)
    },
    "group norm": {  # a shift of each group's biases is not found
        ("scaling", 2, 2): 1,
        ("scaling", 3, 2): 1,
        ("sign", 2, 1): 2,
        ("permutation", 2, 2): 1,
        ("permutation", 3, 2): 1,
        ("permutation", 2, 1): 2,
    },
    "unet": {(kind, size, 1): 1 for kind in ("scaling", "permutation") for size in (3, 4, 5)},
    "residual": {
        ("translation", 6, 1): 3,
        ("general_linear", 6, 1): 1,
        ("sign", 4, 1): 2,
        ("permutation", 4, 1): 2,
    },
    **dict.fromkeys(("rnn", "gru", "lstm", "optimized lstm"), PERMUTED_CELL),
    "attention": HEADS,
    "causal attention": HEADS,
    "multi-query attention": {("translation", 3, 1): 2, ("general_linear", 3, 1): 2, ("permutation", 2, 1): 1},
    "fused attention": {("general_linear", 3, 2): 2, ("permutation", 2, 1): 1},
    "layer norm": {
        ("orthogonal", 4, 1): 1,  # turns about (1, ..., 1)
        ("scaling", 5, 1): 2,
        ("sign", 5, 1): 2,
        ("sign", 1, 1): 1,  # of the whole stream: -1 of the orthogonal group leaves (1, ..., 1) alone
        ("translation", 5, 1): 2,  # of the norms' biases against those of their readers
        # along (1, ..., 1): what writes to the stream, and in the gains' frame what reads it
        ("translation", 3, 1): 2,
        ("translation", 4, 1): 2,
        ("translation", 1, 1): 2,
        ("permutation", 4, 1): 1,
    },
    "rms norm": {("orthogonal", 5, 1): 1, ("scaling", 5, 1): 2, ("sign", 5, 1): 2, ("permutation", 4, 1): 1},
    "rms transformer": ATTENTION_BLOCK
    | {
        ("orthogonal", 6, 1): 1,
        ("scaling", 6, 1): 3,
        ("sign", 6, 1): 3,
        ("translation", 6, 1): 1,  # embedding against positions
        ("translation", 3, 2): 2,  # biases of keys and values
    },
    "tied rms transformer": ATTENTION_BLOCK
    | {
        ("scaling", 6, 1): 2,
        ("sign", 6, 1): 3,
        ("translation", 3, 2): 2,
        ("permutation", 6, 1): 1,
    },
    "cross entropy": CROSS_ENTROPY,
    "sigmoid cross entropy": CROSS_ENTROPY,
    "siamese": {("orthogonal", 5, 1): 1, ("translation", 5, 1): 1, ("sign", 4, 1): 1, ("permutation", 4, 1): 1},
    "tied embedding": {("general_linear", 4, 1): 1, ("sign", 5, 1): 1, ("permutation", 5, 1): 1},
    "mixture": {
        ("translation", 3, 1): 1,  # the same for all gates: per input, and of the bias
        ("translation", 1, 1): 1,
        ("scaling", 4, 3): 1,
        ("permutation", 4, 3): 1,
        ("permutation", 3, 1): 1,
    },
    **{
        f"{name} beside a linear skip": {(kind, 4, 1): 1 for kind in ("sign", "permutation", *kinds)}
        for name, kinds in (
            ("relu", ("scaling",)),
            ("leaky relu", ("scaling",)),
            ("gelu", ()),
            ("silu", ()),
            ("softplus", ()),
        )
    },
    "relu skips": {("general_linear", 6, 1): 1, ("translation", 6, 1): 1} | pairs("sign", "scaling", "permutation"),
    "tied autoencoder": {("sign", 4, 1): 1, ("permutation", 4, 1): 1},
    "deep set": {("scaling", 4, 1): 1, ("permutation", 4, 1): 1},
    "concatenated skip": {
        ("sign", 4, 1): 1,
        ("scaling", 5, 1): 1,
        ("permutation", 4, 1): 1,
        ("permutation", 5, 1): 1,
    },
    "experts": {("translation", 3, 1): 1, ("scaling", 4, 2): 1, ("permutation", 4, 2): 1, ("permutation", 2, 1): 1},
    "stacked layers": {("general_linear", 6, 1): 1, ("sign", 4, 3): 1, ("permutation", 4, 3): 1},
    "weight norm": {("scaling", 4, 1): 2, ("sign", 4, 1): 1, ("permutation", 4, 1): 1},
    "radial": {("orthogonal", 4, 1): 1},
    "maxout": {("scaling", 4, 1): 1, ("permutation", 3, 4): 1, ("permutation", 4, 1): 1},
    # besides the change of basis: w -> c w, in -> c^-3 in
    "recurrent linear": {("general_linear", 4, 1): 1, ("scaling", 1, 1): 1, ("sign", 1, 1): 1},
    "cond": {("sign", 4, 1): 1, ("permutation", 4, 1): 1},
    "while": {("sign", 4, 1): 1, ("permutation", 4, 1): 1},
    "fused attention with biases": {
        ("translation", 6, 1): 2,
        ("general_linear", 3, 2): 2,
        ("permutation", 2, 1): 1,
    },
    "transformer": ATTENTION_BLOCK
    | {
        ("orthogonal", 5, 1): 1,
        ("scaling", 6, 1): 3,
        ("sign", 6, 1): 3,
        ("sign", 1, 1): 1,  # of the stream
        ("translation", 7, 1): 1,  # along (1, ..., 1), which the norms remove: embedding,
        ("translation", 3, 1): 1,  # positions, less what they have in common with the next but two,
        ("translation", 5, 1): 2,  # output of the hidden layer (and, in the gains' frame, its reader),
        ("translation", 1, 1): 2,  # both biases that write to the stream
        ("translation", 6, 1): 3,  # embedding against positions, biases of two norms against those of their readers
        ("translation", 3, 2): 6,  # output of the heads; readers q, k, v in the gains' frame; biases k, v
    },
    "tied transformer": ATTENTION_BLOCK
    | {
        ("scaling", 6, 1): 2,
        ("sign", 6, 1): 2,
        ("sign", 1, 1): 1,  # of the stream
        ("translation", 4, 1): 1,
        ("translation", 5, 1): 2,
        ("translation", 1, 1): 2,
        ("translation", 6, 1): 2,
        ("translation", 3, 2): 6,
        ("permutation", 6, 1): 1,
    },
}
BUILDERS = {name: lambda build=build, name=name: Network(*build(), FACTORS[name]) for name, build in CATALOGUE.items()}
QUICK = (
    "relu",
    "tanh",
    "swiglu",
    "fused attention",
    "stacked layers",
    "radial",
    "equinox",
    "cross entropy",
    "relu skips",
)
"""Run every time; the others by ``scripts/test --all``."""
__all__ = [
    "ATTENTION",
    "BUILDERS",
    "FACTORS",
    "IMAGES",
    "KEY",
    "QUICK",
    "SEQUENCE",
    "TOKENS",
    "Network",
    "Stream",
    "X",
    "normal",
]
