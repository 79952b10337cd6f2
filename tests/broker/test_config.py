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


def test_the_models_file_is_a_path_or_nothing():
    config = Config.from_env({"FLEETCHAT_MODELS_FILE": "~/models.toml"})
    assert config.models_file == Path.home() / "models.toml"
    assert Config.from_env(config.to_env()) == config
    assert Config.from_env({}).models_file is None
    assert Config.from_env(Config.from_env({}).to_env()).models_file is None


def test_a_word_that_is_none_of_those_that_can_be_is_refused_with_them():
    assert Config.from_env({"FLEETCHAT_QUANTIZATION": "int4"}).quantization == "int4"
    with pytest.raises(SetupError, match="FLEETCHAT_QUANTIZATION is 'int3', but must be one of none, int8, int4"):
        Config.from_env({"FLEETCHAT_QUANTIZATION": "int3"})
