"""The runner of ensembles: blocks change nothing, and the catalogue of studies."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxsym import studies
from jaxsym.studies.study import Clock, network_keys, silent


def test_keys_come_from_the_global_index():
    few, many = (jax.random.key_data(network_keys(3, num)) for num in (5, 50))
    np.testing.assert_array_equal(few, many[:5])
    assert len(np.unique(many, axis=0)) == 50


def test_blocks_change_nothing_and_are_counted():
    seen = []
    clock = Clock(lambda *event: seen.append(event), total=7 * 11)
    clock.block = 3
    keys = network_keys(0, 7)
    got = clock.ensemble("draw", lambda key: jax.random.normal(key, (2,)), keys, steps=11)
    np.testing.assert_allclose(got, jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys), rtol=1e-6)
    assert (clock.networks, clock.net_steps) == (7, 77)
    assert seen[-1] == ("draw", 77, 77)
    assert clock.run_seconds > 0 < clock.compile_seconds


@pytest.mark.parametrize("name", studies.catalogue())
def test_every_study_is_well_formed(name):
    study = studies.load(name)
    assert study.title
    assert len(study.title) < 100
    assert type(study.config) is type(study.quick)
    assert type(study.config).__dataclass_params__.frozen
    for field in dataclasses.fields(study.config):
        assert isinstance(getattr(study.quick, field.name), int | float | str | bool)
    silent("nothing", 0, 1)


def test_unknown_study():
    with pytest.raises(ValueError, match="unknown study 'titan': did you mean titanic"):
        studies.load("titan")


def test_finding_the_studies_does_not_start_jax(python):
    """It would be too late for one device a core."""
    code = "from jaxsym.studies import catalogue; catalogue(); import jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count())"
    assert python(code).strip() == "3"
