import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from broker import votefiles
from broker.errors import SetupError
from broker.votefiles import Wrong, digest, records

ONE, TWO = {"a": "1\n2", "n": [1, {"x": None}]}, {"b": "山 🍞"}


def read(tmp_path: Path, content: bytes) -> list[tuple[int, object]]:
    file = tmp_path / "votes"
    file.write_bytes(content)
    return list(records(file))


def why(found: tuple[int, object]) -> tuple[int, str]:
    line, wrong = found
    assert isinstance(wrong, Wrong)
    return line, wrong.why


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_json_lines(tmp_path, pack):
    text = f"\ufeff{json.dumps(ONE)}\n\n{json.dumps(TWO, ensure_ascii=False)}"
    assert read(tmp_path, pack(text.encode())) == [(1, ONE), (3, TWO)]


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_one_json_list(tmp_path, indent, pack):
    found = read(tmp_path, pack(json.dumps([ONE, TWO] * 3, indent=indent, ensure_ascii=False).encode()))
    assert [record for _, record in found] == [ONE, TWO] * 3
    if indent:
        assert [line for line, _ in found][:3] == [2, 11, 14]


def test_a_table_in_csv(tmp_path):
    found = read(tmp_path, b'model_a,model_b,winner\r\nx,"y, or\nso",tie\r\nx,y\r\nx,z,model_a\r\n')
    assert found[0] == (3, {"model_a": "x", "model_b": "y, or\nso", "winner": "tie"})
    assert why(found[1]) == (4, "the row has not as many fields as the heading")
    assert found[2] == (5, {"model_a": "x", "model_b": "z", "winner": "model_a"})


def test_each_bad_line_says_what_is_wrong_and_the_others_are_read(tmp_path):
    deep = b"[" * 100_000
    lines = [b'{"a": 1}', b"garbage", b"\xff\xfe", deep, b"[1]", b'{"a": ', b'{"b": 2}']
    found = read(tmp_path, b"\n".join(lines))
    assert (found[0], found[-1]) == ((1, {"a": 1}), (7, {"b": 2}))
    reasons = [why(one) for one in found[1:-1]]
    assert [line for line, _ in reasons] == [2, 3, 4, 5, 6]
    assert [reason.partition(":")[0] for _, reason in reasons] == [
        "this is not JSON",
        "this is not UTF-8",
        "this is nested too deep",
        "an object is expected",
        "this is not JSON",
    ]


def test_a_list_that_breaks_off_says_where(tmp_path):
    found = read(tmp_path, b'[{"a": 1},\n{"b": 2},\n{"c": ')
    assert found[:2] == [(1, {"a": 1}), (2, {"b": 2})]
    assert why(found[2])[0] == 3
    assert why(read(tmp_path, b'[{"a": 1}')[1]) == (
        1,
        "this is not JSON: Expecting value; nothing behind this can be read",
    )


def test_a_damaged_gzip_file_gives_what_is_before_the_damage(tmp_path):
    whole, cut = gzip.compress(b'{"a": 1}\n'), gzip.compress(b'{"b": 2}\n' * 1000)[:-20]
    found = read(tmp_path, whole + cut)
    assert found[0] == (1, {"a": 1})
    assert "ends too early" in why(found[-1])[1]


def test_a_line_that_is_too_long_is_skipped_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(votefiles, "MOST_BYTES", 1000)
    found = read(tmp_path, b'{"a": "' + b"x" * 5000 + b'"}\n{"b": 2}\n')
    assert why(found[0]) == (1, "the line has more than 1000 bytes")
    assert found[1] == (2, {"b": 2})


@pytest.mark.parametrize("between", [b"\n", b",\n"])
def test_a_long_file_needs_little_memory(tmp_path, between):
    file, line = tmp_path / "votes", json.dumps({"text": "x" * 1000}).encode()
    with open(file, "wb") as stream:
        stream.write(b"[" if b"," in between else b"")
        for _ in range(20_000):
            stream.write(line + between)
        stream.write(line + (b"]" if b"," in between else b""))
    tracemalloc.start()
    assert sum(1 for _ in records(file)) == 20_001
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2_000_000


def test_a_file_is_known_by_its_content(tmp_path):
    for name, content in (("one", b"x"), ("same", b"x"), ("other", b"y")):
        (tmp_path / name).write_bytes(content)
    assert digest(tmp_path / "one") == digest(tmp_path / "same") != digest(tmp_path / "other")


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(SetupError, match="cannot be read: No such file"):
        list(records(tmp_path / "none"))
    with pytest.raises(SetupError, match="cannot be read: Is a directory"):
        list(records(tmp_path))
