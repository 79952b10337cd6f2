from pathlib import Path

import pytest

from broker.config import Config
from broker.errors import SetupError


def test_the_environment_gives_every_setting_back():
    config = Config.from_env(
        {"FLEETCHAT_PORT": "9", "FLEETCHAT_ORIGINS": "https://a.example/, https://b", "FLEETCHAT_DATA": "~/x"}
    )
    assert config.port == 9
    assert config.origins == ("https://a.example", "https://b")
    assert config.data == Path.home() / "x"
    assert Config.from_env(config.to_env()) == config


def test_an_empty_variable_is_absent():
    assert Config.from_env({"FLEETCHAT_PORT": ""}).port == 8080


@pytest.mark.parametrize(
    ("variable", "value"), [("PORT", "eighty"), ("SLOTS", "0"), ("WAIT_SECONDS", "nan"), ("LEASE_SECONDS", "-1")]
)
def test_a_value_that_cannot_be_is_named(variable, value):
    with pytest.raises(SetupError, match=f"FLEETCHAT_{variable}"):
        Config.from_env({f"FLEETCHAT_{variable}": value})
