"""Every test: deterministic hypothesis, and the platform that everybody has."""

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the workers have the cores already; read when SciPy is loaded
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers, and the commands under test, inherit it
    COMPILED = tempfile.TemporaryDirectory(prefix="jaxsym-compiled-")  # not the user's, and nothing of another run
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # of single equations there are most
gc.set_threshold(20_000, 10, 10)  # traces are many objects that stay

hypothesis.settings.register_profile("jaxsym", deadline=None, derandomize=True, max_examples=15)
hypothesis.settings.load_profile("jaxsym")


@pytest.fixture
def python():
    """Run Python in a process of its own, because JAX fixes its devices when it starts; returns what it printed."""

    def run(code, *arguments, devices=1, check=True):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", code, *map(str, arguments)] if code else [sys.executable, *map(str, arguments)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if check:
            assert result.returncode == 0, result.stderr
            return result.stdout
        return result

    return run


@pytest.fixture(scope="session")
def root():
    """The folder of the repository."""
    return Path(__file__).resolve().parent.parent


STUDIES = (
    "conservation",
    "conservation_laws",
    "dropout",
    "equivalent_minima",
    "equivariant_layers",
    "flat_minima",
    "hidden_symmetries",
    "hyperparameters",
    "identities",
    "implicit_bias",
    "invariant_optimizers",
    "mode_connectivity",
    "polynomial",
    "propagation",
    "rescue",
    "second_order",
    "symmetry_breaking",
    "teleportation",
    "titanic",
)  # whose run is long, though small
SIBLINGS = {
    "test_canonical": [
        "test_balance_at_the_ends_of_a_precision[float16-4.0]",
        "test_units_that_can_only_shrink_together_stay[a]",
    ],
    "test_connect": [f"test_a_curve_inside_the_orbit_is_one_function[{name}]" for name in ("attention", "layer norm")],
    "test_faults": ["test_kill_9_at_random_moments[inline-2]"],
    "test_attention": ["test_what_a_position_sees[True]"],
    "test_hyperparameters": [
        f"test_a_masked_network_trains_as_if_it_stood_alone[{case}]" for case in ("5-2-tanh", "3-3-sigmoid")
    ],
    "test_noether": [
        "test_the_gradient_of_a_charge_is_its_generator[relu skips]",
        "test_momenta_belong_to_antisymmetric_generators[attention]",
        "test_momenta_belong_to_antisymmetric_generators[siamese]",
        "test_no_combination_of_generators_is_left_out[layer norm]",
        "test_sums_of_translations_in_which_coefficients_cancel[embedding, positions and a bias]",
        "test_sums_of_translations_in_which_coefficients_cancel[two biases before a gain]",
    ],
    "test_group": ["test_elements_of_the_continuous_part_under_jit[norms]", "test_elements_under_vmap[norms]"],
    "test_match": ["test_the_group_acts_afterwards_as_before[group norm]"],
    "test_notebooks": ["test_a_notebook_runs[ensemble_sweep]", "test_a_notebook_runs[symmetry_and_training]"],
    "test_null_space": [
        "test_null_spaces_at_zero_residual_are_kernels_of_the_jacobian[square-6]",
        "test_null_spaces_at_zero_residual_are_kernels_of_the_jacobian[tanh-0]",
        "test_parts_add_up_and_none_is_negative[0.7]",
        "test_ranks_are_the_same_along_the_orbit[1000.0]",
    ],
    "test_slurm": ["test_kills_and_preemptions_at_random_moments[2]"],
    "test_spectra": [
        "test_a_matrix_that_is_zero_has_as_many_copies_as_asked_for[largest]",
        "test_krylov_finds_the_extreme_ones_with_their_copies[magnitude]",
    ],
    "test_symmetry_breaking": ["test_an_exchange_of_two_units_is_no_change[lstm]"],
    "test_steps": ["test_the_modified_equation_of_momentum[relu]"],
    "test_traps": ["test_no_direction_is_counted_twice[rows and columns of embeddings]"],
    "test_teleport": ["test_a_group_of_another_loss_is_refused[True]"],
}
"""The most expensive tests, by file: each has a cheaper sibling that runs every time."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What looks at a long run is long; and the files that wait longest go first, so that no worker is left with one at the end."""
    for item in items:
        of_a_run = item.path.stem.removeprefix("test_") in STUDIES and "folder" in item.fixturenames
        if of_a_run or item.name in SIBLINGS.get(item.path.stem, ()):
            item.add_marker(pytest.mark.long)
    first = ("sweep", "parallel", "studies")
    items.sort(key=lambda item: next((i for i, room in enumerate(first) if room in item.path.parts[-2:]), len(first)))
