import inspect
import re
from pathlib import Path

from broker import keys
from broker.connection import Broker


async def test_scripts_and_python_make_the_same_names(broker: Broker):
    for name, pattern in keys.PATTERNS.items():
        made = await broker.redis.eval(keys.LUA + f"return K.{name}(ARGV[1])", 0, "a:b/c")
        assert made.decode() == pattern.replace("%s", "a:b/c")


def test_every_pattern_stands_in_the_table():
    table = inspect.getdoc(keys)
    for pattern in keys.PATTERNS.values():
        assert re.search(rf"^\s*{re.escape(pattern.split('%s')[0])}", table, re.M), pattern


def test_no_other_file_contains_a_key():
    root = Path(keys.__file__).parents[1]
    prefixes = [p.split("%s")[0] for p in keys.PATTERNS.values() if "%s" in p]
    literal = re.compile(r"""["'](""" + "|".join(map(re.escape, prefixes)) + ")")
    files = [
        f for floor in ("broker", "workers", "webapp") for ext in ("*.py", "*.lua") for f in (root / floor).rglob(ext)
    ]
    assert len(files) > 30
    found = [f"{f}: {m[0]}" for f in files if f.name != "keys.py" for m in literal.finditer(f.read_text())]
    assert not found
