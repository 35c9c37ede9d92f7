"""One ensemble over two real processes on the loopback, each with two devices."""

import os
import socket
import subprocess
import sys

COMMON = """
import jax, jax.numpy as jnp, numpy as np, jaxsym as js
x = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
def train(key, rate):
    w = jax.random.normal(key, (4,))
    step = lambda w, _: (w - rate * jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w), None)
    return {"w": jax.lax.scan(step, w, None, length=20)[0], "key": key}
def results(num):
    keys = jax.random.split(jax.random.key(0), num)
    mapped = js.parallel(train, (0, None), chunk=2)
    trained = mapped(keys, 0.1)
    again = js.parallel(lambda run, rate: run["w"] * rate)(trained, np.arange(num, dtype=np.float32))
    return trained["w"], jax.random.key_data(trained["key"]), again
"""
ALONE = """
import sys
for num in (8, 7):
    np.savez(f"{sys.argv[1]}/alone_{num}.npz", *map(np.asarray, results(num)))
"""
PROCESS = """
import sys
folder, port, index = sys.argv[1:]
import jax
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(index))
from jax.experimental import multihost_utils
assert (len(jax.local_devices()), len(jax.devices())) == (2, 4)
for num in (8, 7):
    with np.load(f"{folder}/alone_{num}.npz") as expected:
        for whole, array in zip(expected.values(), results(num), strict=True):
            assert array.shape == whole.shape and not array.is_fully_addressable
            covered = np.zeros(num, int)
            for shard in array.addressable_shards:
                np.testing.assert_array_equal(shard.data, whole[shard.index])
                covered[shard.index[0]] += 1
            assert covered.sum() == (num // 2 if num == 8 else 2 * num)
            gathered = multihost_utils.process_allgather(array, tiled=True)
            np.testing.assert_array_equal(gathered, whole)
auto = js.parallel(train, (0, None))
assert auto.chunk_for(jax.random.split(jax.random.key(0), 8), 0.1) >= 1
local = js.parallel(jnp.sin, devices=jax.local_devices())(jnp.arange(4.0))
np.testing.assert_allclose(local, np.sin(np.arange(4.0)), rtol=1e-6)
print("ok")
"""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_two_processes_train_one_ensemble(python, tmp_path):
    python(COMMON + ALONE, tmp_path)
    port = free_port()
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROCESS.replace("assert (len", COMMON + "assert (len", 1), tmp_path, port]
    processes = [
        subprocess.Popen(
            [*map(str, command), str(index)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        assert out.split()[-1] == "ok"
