"""Whatever the model wants to say, what is said has the form that was asked for."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator, FormatChecker
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from broker.errors import BadRequest
from broker.messages import Structure
from tests.tiny_model import END, PAD, START, tokenizer
from tests.workers.engine.schemas import REFUSED, SCHEMAS, obj
from workers.engine.structure import Grammars, Matcher, _apply_here, _apply_there, mask

ENDS = frozenset({END, PAD})
FREE = 24  # tokens that a random answer may go on without being pushed towards its end
PUSH = {'"': 3.0, "}": 2.0, "]": 2.0, "b": 2.5, "z": 2.5, "@": 2.8, ":": 2.6, " ": 1.0, ",": 1.0, "[": -1.0, "{": -1.0}
CHECKS = FormatChecker()
CHECKS.checks("time", ValueError)(lambda text: bool(datetime.fromisoformat(f"2020-01-01T{_whole(text)}")))
CHECKS.checks("date-time", ValueError)(lambda text: bool(datetime.fromisoformat(_whole(text.replace("t", "T")))))
CHECKS.checks("ipv4", ValueError)(lambda text: bool(IPv4Address(text)))
CHECKS.checks("ipv6", ValueError)(lambda text: bool(IPv6Address(text)))
CHECKS.checks("duration")(lambda text: bool(re.fullmatch(r"P(?=.)(\d+[YMWD])*(T(\d+[HMS])+)?", text)))
CHECKS.checks("hostname")(
    lambda text: bool(re.fullmatch(r"(?=.{1,253}$)[a-zA-Z0-9-]{1,63}(\.[a-zA-Z0-9-]{1,63})*", text))
)
CHECKS.checks("uri")(lambda text: bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]*", text)))


def _whole(time: str) -> str:
    """Without fractions of a second and leap seconds, which Python's datetime does not know in all their forms."""
    return re.sub(r":60(?=[.Zz+-])", ":59", re.sub(r"\.\d+", "", time)).upper()


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    made = tokenizer()
    return Grammars(made, len(made) + 37, ENDS)  # the logits are wider than the tokenizer


def structure(kind: str, value: Any = "") -> Structure:
    return Structure(kind, value if isinstance(value, str) else json.dumps(value))


def pushes(made: Any, width: int) -> torch.Tensor:
    """What brings a random answer to its end: closing tokens up, those that open or go on down."""
    towards = torch.zeros(width)
    for token_id in range(len(made)):
        text = made.decode([token_id], skip_special_tokens=True)
        towards[token_id] = PUSH.get(text.strip() or text, 0)
    towards[list(ENDS)] = 4.0
    return towards


def answers(
    grammars: Grammars, made: Any, matchers: Sequence[Matcher], seed: int = 0, steps: int = 600
) -> list[list[int]]:
    """What a model of random logits says under each matcher, all in one batch, without the end tokens."""
    generator = torch.Generator().manual_seed(seed)
    said: list[list[int]] = [[] for _ in matchers]
    running = list(range(len(matchers)))
    towards = pushes(made, 32 * grammars.words)[: len(made) + 37]
    for step in range(steps):
        logits = torch.randn(len(running), len(towards), generator=generator)
        logits += towards * min(max(step - FREE, 0) / 16, 8)
        mask(logits, [matchers[i] for i in running])
        picks = logits.argmax(-1).tolist()
        for i, token_id in zip(running, picks, strict=True):
            assert not matchers[i].failed, made.decode(said[i])
            matchers[i].advance(token_id)
            if token_id not in ENDS:
                said[i].append(token_id)
        running = [i for i, token_id in zip(running, picks, strict=True) if token_id not in ENDS]
        if not running:
            return said
    raise AssertionError(f"did not end: {made.decode(said[running[0]])[:300]}")


def allowed(matcher: Matcher, width: int) -> set[int]:
    logits = torch.zeros(1, width)
    mask(logits, [matcher])
    return set(logits[0].isfinite().nonzero()[:, 0].tolist())


@pytest.mark.timeout(120)
def test_two_hundred_schemas_give_only_valid_json(grammars: Grammars) -> None:
    made = tokenizer()
    assert len({json.dumps(schema) for schema in SCHEMAS}) == len(SCHEMAS) >= 200
    with ThreadPoolExecutor(4) as threads:
        matchers = list(threads.map(lambda schema: grammars.compile(structure("json_schema", schema)), SCHEMAS))
    for ids, schema in zip(answers(grammars, made, matchers), SCHEMAS, strict=True):
        assert not {START, END, PAD} & set(ids)
        text = made.decode(ids)
        Draft202012Validator.check_schema(schema)
        Draft202012Validator(schema, format_checker=CHECKS).validate(json.loads(text))


def test_a_schema_is_answered_differently_each_time(grammars: Grammars) -> None:
    made = tokenizer()
    schema = {"type": "array", "items": {"type": ["string", "number", "boolean"]}, "minItems": 2}
    matchers = [grammars.compile(structure("json_schema", schema)) for _ in range(8)]
    texts = [made.decode(ids) for ids in answers(grammars, made, matchers)]
    assert len(set(texts)) == 8
    for text in texts:
        Draft202012Validator(schema).validate(json.loads(text))


def test_json_object_gives_an_object(grammars: Grammars) -> None:
    made = tokenizer()
    matchers = [grammars.compile(structure("json_object")) for _ in range(8)]
    assert all(isinstance(json.loads(made.decode(ids)), dict) for ids in answers(grammars, made, matchers, seed=3))


@pytest.mark.parametrize("said", REFUSED)
def test_a_schema_that_cannot_be_kept_is_refused(grammars: Grammars, said: str) -> None:
    with pytest.raises(BadRequest, match=rf"response_format's JSON schema cannot be used: .*{said}"):
        grammars.compile(structure("json_schema", REFUSED[said]))


@pytest.mark.parametrize(
    "pattern",
    [
        r"[0-9]{3}-[a-z]+",
        r"(ja|nein|vielleicht)!?",
        r"\p{Han}{2,5}",
        r"[😀-😎]{1,3}",
        r"a.c\n?",
        r"([a-z]{1,6} ){2}[A-Z]+",
        r"x*",
        r"ß|é|e\u0301",
    ],
)
def test_regular_expressions_match_in_full(grammars: Grammars, pattern: str) -> None:
    made = tokenizer()
    matchers = [grammars.compile(structure("regex", pattern)) for _ in range(4)]
    python = pattern.replace(r"\p{Han}", "[⺀-\U000323af]")
    for ids in answers(grammars, made, matchers):
        assert re.fullmatch(python, made.decode(ids))


def test_a_choice_is_one_of_its_strings(grammars: Grammars) -> None:
    made = tokenizer()
    choices = [
        "yes",
        "yes, but",
        "no",
        "",
        "你好",
        "😀",
        "😀😃",
        'with "quotes"\n',
        "back\\slash",
        "<|im_end|>",
        "/regex/",
        "\x00",
    ]
    matchers = [grammars.compile(structure("choice", choices)) for _ in range(60)]
    found = {made.decode(ids) for ids in answers(grammars, made, matchers)}
    assert found <= set(choices)
    assert len(found) > 6


GBNF = r"""
root ::= "SELECT " column (", " column){0,2} " FROM " table-name where?  # as vLLM's page has one
column ::= "\"a\"" | [x-z]+ | "ü"
table-name ::= [^a-z \n]{2,3}
where ::=
  " WHERE " column " = " (number | "(" number ")")
number ::= [0-9]+
"""
SQL = r'SELECT ("a"|[x-z]+|ü)(, ("a"|[x-z]+|ü)){0,2} FROM [^a-z \n]{2,3}( WHERE ("a"|[x-z]+|ü) = ([0-9]+|\([0-9]+\)))?'


def test_a_grammar_in_gbnf_is_kept_to(grammars: Grammars) -> None:
    made = tokenizer()
    found = {
        made.decode(ids)
        for ids in answers(grammars, made, [grammars.compile(Structure("grammar", GBNF)) for _ in range(6)])
    }
    assert all(re.fullmatch(SQL, text) for text in found), found
    for text, fits in (
        ('SELECT "a", zz FROM QÜ WHERE ü = (12)', True),
        ("SELECT b", False),
        ("SELECT x FROM a", False),
    ):
        ids = made.encode(text, add_special_tokens=False)
        if fits:
            assert grammars.compile(Structure("grammar", GBNF), ids).parser.is_accepting()
        else:
            with pytest.raises(BadRequest, match="does not fit"):
                grammars.compile(Structure("grammar", GBNF), ids)


def test_a_grammar_is_kept_to(grammars: Grammars) -> None:
    made = tokenizer()
    lark = 'start: sum\nsum: NUMBER (("+" | "-") NUMBER)*\nNUMBER: /[1-9][0-9]{0,3}/'
    for ids in answers(grammars, made, [grammars.compile(structure("grammar", lark)) for _ in range(6)]):
        assert re.fullmatch(r"[1-9]\d{0,3}([+-][1-9]\d{0,3})*", made.decode(ids))


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("regex", "", "it is empty"),
        ("regex", "(a", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "[a&&b]", "no text at all"),
        ("regex", "\ud800", "half a character"),
        ("regex", "a" * 70_000, "has 70000 characters"),
        ("choice", "[]", "one or more strings"),
        ("choice", "[1]", "one or more strings"),
        ("choice", "yes", "not JSON"),
        ("grammar", "", "no start rule"),
        ("grammar", "start: gone", "unknown name"),
        ("grammar", "start: <|im_start|>", "unknown special token"),
        ("grammar", '{"grammars": []}', "cannot be used"),
        ("grammar", 'root ::= "a', "no GBNF"),
        ("grammar", 'a ::= "a"', "No 'root' rule"),
        ("grammar", "root ::= " + "(" * 9000, "no GBNF"),
        ("grammar", "root ::= a\n" + "\n".join(f'a{i} ::= "b"' for i in range(1000)), "too long for GBNF"),
        ("grammar", "root ::= a\r" + "\r".join(f'a{i} ::= "b"' for i in range(1000)), "too long for GBNF"),
        ("grammar", "\n" * 65_000 + "start: gone", "unknown name"),
        ("xml", "<a/>", "no structure 'xml'"),
    ],
)
def test_what_makes_no_sense_is_refused(grammars: Grammars, kind: str, value: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        grammars.compile(Structure(kind, value))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json_schema", {"type": "integer", "allOf": [{"multipleOf": p} for p in (7, 11, 13, 17, 19, 23)]}),
        ("json_schema", {"type": "string", "allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(1, 40)]}),
        (
            "json_schema",  # overflows the stack
            {
                "$defs": {f"d{i}": obj({"a": {"$ref": f"#/$defs/d{i + 1}"}}) for i in range(800)} | {"d800": {}},
                "$ref": "#/$defs/d0",
            },
        ),
        ("grammar", "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(4500)) + '\nr4500: "a"'),
        ("json_schema", '{"items":' * 6000 + "{}" + "}" * 6000),
    ],
)
def test_what_would_hang_or_kill_the_worker_is_refused(grammars: Grammars, kind: str, value: Any) -> None:
    with pytest.raises(BadRequest, match="cannot be used"):
        grammars.compile(structure(kind, value))


def test_a_limit_in_the_middle_of_an_answer_lets_it_only_end(grammars: Grammars) -> None:
    made = tokenizer()
    matcher = grammars.compile(structure("regex", r"(.|\n)*a.{900}"))
    letter = made.encode("a")[0]
    width = len(made) + 37
    generator = torch.Generator().manual_seed(0)
    for _ in range(20_000):
        logits = torch.randn(1, width, generator=generator)
        logits[0, letter] += 2
        mask(logits, [matcher])
        token_id = int(logits.argmax())
        if token_id in ENDS:
            break
        matcher.advance(token_id)
    assert matcher.failed
    assert allowed(matcher, width) == ENDS
    matcher.advance(END)
    assert matcher.failed


def test_a_grammar_that_wants_control_tokens_lets_only_end(grammars: Grammars) -> None:
    made = tokenizer()
    matcher = grammars.compile(structure("grammar", 'start: "a" <[1]> "b"'))
    width = len(made) + 37
    matcher.advance(made.encode("a")[0])
    assert allowed(matcher, width) == ENDS
    assert matcher.failed
    free = allowed(grammars.compile(structure("grammar", "start: ANY\nANY: ~/x/")), width)
    assert START not in free
    assert free >= ENDS
    assert max(free) < len(made)


def test_end_tokens_only_where_the_text_is_complete(grammars: Grammars) -> None:
    made = tokenizer()
    matcher = grammars.compile(structure("choice", ["ab", "abab"]))
    width = len(made) + 37
    seen = []
    for letter in "abab":
        seen.append(ENDS & allowed(matcher, width))
        matcher.advance(made.encode(letter)[0])
    assert seen == [set(), set(), ENDS, set()]
    assert allowed(matcher, width) == ENDS
    matcher.advance(PAD)  # one of several end tokens
    assert not matcher.failed


def test_an_end_token_that_is_no_control_token_is_not_text() -> None:
    made = tokenizer()
    made.add_tokens([AddedToken("<end>", special=False, normalized=False)])
    end = made.convert_tokens_to_ids("<end>")
    grammars = Grammars(made, len(made), frozenset({end}))
    matcher = grammars.compile(structure("regex", r"<end>|[a-z<>]+"))
    assert end not in allowed(matcher, len(made))
    for letter in "<end>":
        matcher.advance(made.encode(letter)[0])
    assert end in allowed(matcher, len(made))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (
            "json_schema",
            {"type": "object", "properties": {"à": {"type": "string"}}, "required": ["à"], "minProperties": 2},
        ),
        ("choice", ["Über 你好 😀 e\u0301", "Über"]),
        ("regex", "[😀-😎]{4}"),
    ],
)
def test_a_resumed_answer_has_the_same_masks(grammars: Grammars, kind: str, value: Any) -> None:
    made = tokenizer()
    width = len(made) + 37
    ids = answers(grammars, made, [grammars.compile(structure(kind, value))], seed=1)[0]
    matcher = grammars.compile(structure(kind, value))
    for split in range(len(ids) + 1):
        assert allowed(matcher, width) == allowed(grammars.compile(structure(kind, value), ids[:split]), width)
        matcher.advance([*ids, END][split])
    with pytest.raises(BadRequest, match="so far"):
        grammars.compile(structure(kind, value), [*ids, START])


def sentencepiece() -> PreTrainedTokenizerFast:
    """Like Llama 2's: spaces are ▁, bytes are <0x..>, and a text's first space is dropped."""
    words = ["▁", "▁yes", "yes", "▁a", "ab", '{"', '":', "▁{", "}", "你", "a", "b", '"', ":", "{", "e", "s", "y"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    backend = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_a_vocabulary_with_byte_fallback() -> None:
    made = sentencepiece()
    grammars = Grammars(made, len(made) + 37, ENDS)
    schema = {
        "type": "object",
        "properties": {"yes": {"enum": ["你好", "a b", "ß"]}, "é": {"type": "string"}},
        "required": ["yes", "é"],
    }
    matchers = [grammars.compile(structure("json_schema", schema)) for _ in range(12)]
    for ids in answers(grammars, made, matchers):
        Draft202012Validator(schema).validate(json.loads(made.decode(ids)))


def test_a_tokenizer_without_an_end_cannot() -> None:
    with pytest.raises(BadRequest, match="no end token"):
        Grammars(tokenizer(), 512, frozenset()).compile(structure("json_object"))


def test_a_mask_leaves_what_is_allowed_as_it_was(grammars: Grammars) -> None:
    made = tokenizer()
    logits = torch.randn(2, len(made) + 37)
    before = logits.clone()
    mask(logits, [grammars.compile(structure("regex", "[a-z]+")), grammars.compile(structure("json_object"))])
    assert torch.equal(logits[logits.isfinite()], before[logits.isfinite()])
    assert np.isneginf(logits.numpy()[~logits.isfinite().numpy()]).all()
    mask(logits[:0], [])


def test_an_accelerator_gets_the_same_mask() -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 256, (3, 16), np.uint8)
    here = torch.randn(3, 123)
    there = here.clone()
    _apply_here(here.numpy(), bits)
    _apply_there(there, bits)
    assert torch.equal(here, there)
    assert here.isfinite().tolist() == np.unpackbits(bits, axis=1, count=123, bitorder="little").astype(bool).tolist()


def test_many_threads_compile_at_once() -> None:
    grammars = Grammars(tokenizer(), 512, ENDS)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda i: grammars.compile(structure("regex", f"a{{{i % 3 + 1}}}")), range(24)))
    assert all(len(allowed(matcher, 512)) >= 1 for matcher in made)
