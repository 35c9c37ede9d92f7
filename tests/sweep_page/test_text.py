"""The file on a page says what the config says."""

import tomllib

import pytest

from jaxsym.sweep_page.text import toml

CONFIGS = [
    {
        "sweep": {"target": 'a "b"\\\n\tc:é', "seeds": [3, 5], "chunk": 4},
        "static": {"w": [True, False], "odd key": [[1, 2], []]},
    },
    {"static": {"x": [1e-5, 1e300, float("inf"), -0.5]}, "traced": {}},
    {"search": {"method": "tpe", "space": {"rate": {"low": 1e-4, "log": True}, "scale": {"choices": [0.1, 1]}}}},
    {"sweep": {"target": "\x7f\x01🙂"}},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_file_is_read_back(config):
    assert tomllib.loads(toml(config)) == {name: table for name, table in config.items() if table}


def test_what_is_none_is_left_out():
    assert tomllib.loads(toml({"sweep": {"chunk": None, "seeds": 2}})) == {"sweep": {"seeds": 2}}
