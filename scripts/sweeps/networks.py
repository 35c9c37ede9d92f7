"""What the worked examples train: factories whose arguments are the static axes of a sweep.

A factory returns what ``make_train`` returns; the traced axes are hyperparameters of its optimizer or loss.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsym as js
from jaxsym.training.initial import initializer


def titanic(width=4, activation="tanh", kernel="xavier_normal", steps=400):
    """One hidden layer on the Titanic; trace ``learning_rate``. Records the loss, distinct units and the test accuracy."""
    data = js.data.titanic()
    net = js.models.MLP((width, 1), activation=activation, kernel_init=initializer(kernel))

    def loss(params, rows, key):
        return optax.sigmoid_binary_cross_entropy(net.apply(params, rows.inputs)[:, 0], rows.targets).mean()

    def test_accuracy(seen):
        return jnp.mean((net.apply(seen.params, data.test.inputs)[:, 0] > 0) == (data.test.targets == 1))

    return js.make_train(
        init=lambda key: net.init(key, data.train.inputs[:1]),
        loss=loss,
        optimizer=optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
        data=data.train,
        steps=steps,
        probes={"distinct_units": js.training.probes.distinct_units(), "test_accuracy": test_accuracy},
        record_every=max(1, steps // 20),
    )


def digits(width=32, activation="relu", steps=300):
    """One hidden layer on the 8 x 8 digits, minibatches of 64; trace ``learning_rate``, ``momentum`` and ``weight_decay``.

    A fifth of the training rows is held out: a search goes by the ``validation_loss``, and ``test_loss`` is what nothing was chosen by.
    """
    data = js.data.digits()
    held = np.arange(len(data.train.targets)) % 5 == 0
    validation, train = (jax.tree.map(lambda leaf, rows=rows: leaf[rows], data.train) for rows in (held, ~held))
    net = js.models.MLP((width, 10), activation=activation)

    def flat(images):
        return images.reshape(len(images), -1)

    def optimizer(learning_rate, momentum, weight_decay):
        return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum))

    def cost(params, rows):
        return optax.softmax_cross_entropy_with_integer_labels(
            net.apply(params, flat(rows.inputs)), rows.targets
        ).mean()

    def loss_on(rows):
        return lambda seen: cost(seen.params, rows)

    return js.make_train(
        init=lambda key: net.init(key, flat(train.inputs[:1])),
        loss=lambda params, rows, key: cost(params, rows),
        optimizer=optax.inject_hyperparams(optimizer)(learning_rate=0.1, momentum=0.9, weight_decay=0.0),
        data=train,
        steps=steps,
        batch_size=64,
        probes={"validation_loss": loss_on(validation), "test_loss": loss_on(data.test)},
        record_every=max(1, steps // 10),
    )
