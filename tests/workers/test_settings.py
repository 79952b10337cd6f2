import subprocess
import sys

import pytest

from fleet_process import environment

COMMAND = [sys.executable, "-m", "arq", "workers.Settings"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": "./nowhere"}, "no folder './nowhere'"),
        ({"model": "jobs=echo"}, "cannot be a model's name"),
        ({"slots": "many"}, "FLEETCHAT_SLOTS is 'many'"),
        ({"model": "a=echo,b=http://h/v1"}, "a, b cannot share a worker"),
        ({"model": "", "models_file": "./nowhere.toml"}, "nowhere.toml cannot be read"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence_and_exit_code_2(settings, sentence):
    done = subprocess.run(COMMAND, env=environment("redis://127.0.0.1:1", **settings), capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_engine_imports_without_redis_or_environment():
    code = "import workers, workers.engine, sys; assert 'redis' not in sys.modules and 'arq' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"FLEETCHAT_SLOTS": "nonsense", "PATH": ""})
