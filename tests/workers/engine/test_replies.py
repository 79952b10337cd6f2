"""Reasoning and calls are told apart wherever the text is cut, and all that is neither comes out as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from broker.errors import BadRequest
from broker.messages import ChatRequest, Frame, Message, Sampling
from tests.tiny_model import END, build, tokenizer
from tests.workers.engine.conftest import Open
from webapp.openai_answers import Progress, _join_calls
from workers.engine.prompt import Prompter
from workers.engine.replies import Part, Replies
from workers.engine.structure import Grammars
from workers.engine.torch_engine import TorchEngine

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
PARAMETERS = {
    "type": "object",
    "properties": {
        "sky": {"enum": ['a } " {', "b"]},
        "days": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2},
    },
    "required": ["sky", "days"],
    "additionalProperties": False,
}
FORECAST = {"type": "function", "function": {"name": "forecast", "parameters": PARAMETERS}}
HERMES = """{% if tools %}<|im_start|>system
Answer <tool_call>{"name": ...}</tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1] }}{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if thinking %}<think>
{% endif %}"""
OWN = {  # a response template as models have them
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<|pad|>", "close": "</t>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\[CALL (?P<name>\w+)\]",
            "close": "[/CALL]",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"content": "text"},
    },
}


def made(template: str = HERMES, own: Any = None) -> tuple[Replies, Prompter]:
    found = tokenizer()
    found.chat_template, found.response_template = template, own
    prompter = Prompter(found)
    return Replies(found, prompter.with_tool), prompter


def asked(**more: Any) -> ChatRequest:
    return ChatRequest(**{"model": "m", "messages": (Message("user", "<think>?"),), "request_id": "r"} | more)


def parts(texts: list[str], request: ChatRequest, **more: Any) -> tuple[dict[str, str], list[Any]]:
    """The texts of both kinds, and the calls put together again."""
    replies, prompter = made(**more)
    reply = replies.begin(request, prompter.write(request)[1])
    if reply is None:
        return {"text": "".join(texts)}, []
    found: list[Part] = [part for text in texts for part in reply.feed(text)] + reply.finish()
    said: dict[str, str] = {}
    for part in found:
        if part.text:
            said[part.kind] = said.get(part.kind, "") + part.text
    assert all(delta.get("id") or "id" not in delta for part in found for delta in part.calls)
    calls = _join_calls(delta for part in found for delta in part.calls)
    assert [call["id"] for call in calls] == [f"call_r_{i}" for i in range(len(calls))]
    return said, [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


ARGUMENTS = '{"a": "}\\"</tool{", "b": [{}]}'
ONE = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
TURNED = '<tool_call>{"arguments": {"x": 1}, "name": "weather"}</tool_call>'
TOOLS = {"tools": (WEATHER,)}
CASES: list[tuple[str, dict[str, Any], dict[str, str], list[Any]]] = [
    ("<think>\nI see.\n</think>\n\nHi. ", {}, {"reasoning": "I see.", "text": "Hi. "}, []),
    ("I see.</think>Hi.", {"template_kwargs": {"thinking": True}}, {"reasoning": "I see.", "text": "Hi."}, []),
    ("Hm", {"template_kwargs": {"thinking": True}}, {"reasoning": "Hm"}, []),
    ("A <think> is no thought </think> here", {}, {"text": "A <think> is no thought </think> here"}, []),
    (ONE, {}, {"text": ONE}, []),
    (f"Wait.\n{ONE}\n{TURNED}\n", TOOLS, {"text": "Wait."}, [("weather", ARGUMENTS), ("weather", '{"x": 1}')]),
    (f"<think>so</think>\n{ONE}", TOOLS, {"reasoning": "so"}, [("weather", ARGUMENTS)]),
    (f"{ONE}{ONE}more", TOOLS | {"parallel_tool_calls": False}, {}, [("weather", ARGUMENTS)]),
    (ONE.replace("weather", "other"), TOOLS, {"text": ONE.replace("weather", "other")}, []),
    ("a <tool_call>no</tool_call> b", TOOLS, {"text": "a <tool_call>no</tool_call> b"}, []),
    ('a <tool_call>{"name": "wea', TOOLS, {"text": 'a <tool_call>{"name": "wea'}, []),
    ("a <tool_cal", TOOLS, {"text": "a <tool_cal"}, []),
    (ONE[:60], TOOLS, {}, [("weather", ARGUMENTS[: 60 - ONE.index(ARGUMENTS)])]),
]


@pytest.mark.parametrize(("text", "more", "said", "calls"), CASES)
def test_reasoning_and_calls_are_found_wherever_the_text_is_cut(text, more, said, calls) -> None:
    for i in range(len(text) + 1):
        assert parts([text[:i], text[i:]], asked(**more)) == (said, calls), i
    assert parts(list(text), asked(**more)) == (said, calls)


def test_arguments_come_as_they_are_written() -> None:
    replies, prompter = made()
    request = asked(**TOOLS)
    reply = replies.begin(request, prompter.write(request)[1])
    assert reply is not None
    first = reply.feed(ONE[: ONE.index("</tool{")])
    assert [list(delta) for part in first for delta in part.calls] == [
        ["index", "id", "type", "function"],
        ["index", "function"],
    ]
    assert first[-1].calls[0]["function"]["arguments"] == ARGUMENTS[: ARGUMENTS.index("</tool{")]


def test_a_models_own_response_template_comes_first() -> None:
    request = asked(**TOOLS)
    texts = list('<|pad|>so</t>Hi [CALL weather]{"x": 1}[/CALL]')
    assert parts(texts, request, own=OWN) == ({"reasoning": "so", "text": "Hi"}, [("weather", '{"x": 1}')])
    broken = parts(list("Hi [CALL weather]{no[/CALL] so"), request, own=OWN)
    assert broken == ({"text": "Hi [CALL weather]{no[/CALL] so"}, [])
    assert made(own=OWN)[0].markers == {0}  # a control token that the detokeniser has to show


def test_calls_in_xml() -> None:
    text = "<tool_call>\n<function=weather>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    assert parts(list(text), asked(**TOOLS), template=XML) == ({}, [("weather", '{"x": "1"}')])


def test_values_in_xml_lose_the_blanks_around_them_and_nothing_else() -> None:
    for value in ("", "a", "a b\n\n c", "<b>1 < 2</b>", "<parameter=y>", "</function>"):
        text = f"<tool_call><function=weather><parameter=x>\n {value} \n</parameter></function></tool_call>"
        assert parts(list(text), asked(**TOOLS), template=XML) == ({}, [("weather", json.dumps({"x": value}))])


def test_nothing_but_blanks_where_a_call_should_be_takes_no_time() -> None:
    blanks = "\n" * 100_000
    assert parts(["<tool_call>", blanks], asked(**TOOLS))[1] == []
    text = f"<tool_call>\n<function=weather>\n<parameter=x>{blanks}</function>\n</tool_call>"
    assert parts([text], asked(**TOOLS), template=XML) == ({}, [("weather", "{}")])


LLAMA = """{% if tools %}Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.
{{ tools | tojson }}{% endif %}{{ messages[0].content }}"""
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}{% endif %}{{ messages[0].content }}{# [TOOL_CALLS] #}"
NAMED = MISTRAL + "{# [ARGS] #}"
XML = HERMES.replace('{"name": ...}', "<function=a>")
LISTED = f'[{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "weather", "arguments": {{}}, "id": "a"}}]'
SPOKEN = f'{{"name": "weather", "parameters": {ARGUMENTS}}}'
BOTH = [("weather", ARGUMENTS), ("weather", "{}")]


@pytest.mark.parametrize(
    ("template", "text", "said", "calls"),
    [
        (LLAMA, SPOKEN, {}, BOTH[:1]),
        (LLAMA, f'{SPOKEN}; {{"name": "weather", "parameters": {{}}}}', {}, BOTH),
        (LLAMA, f'{{"type": "function", {SPOKEN[1:]}', {}, [("weather", json.dumps(json.loads(ARGUMENTS)))]),
        (LLAMA, SPOKEN.replace("weather", "other"), {"text": SPOKEN.replace("weather", "other")}, []),
        (LLAMA, f"Hi {SPOKEN}", {"text": f"Hi {SPOKEN}"}, []),
        (LLAMA, '{"name": 5', {"text": '{"name": 5'}, []),
        (LLAMA, '{"names": 5}', {"text": '{"names": 5}'}, []),
        (MISTRAL, f"So.[TOOL_CALLS] {LISTED}", {"text": "So."}, BOTH),
        (MISTRAL, f"[TOOL_CALLS]{LISTED[:-9]}", {}, BOTH),
        (
            MISTRAL,
            f"[TOOL_CALLS]{LISTED}".replace('"arguments": {}', '"no": 1'),
            {"text": '}, {"name": "weather", "no": 1, "id": "a"}]'},
            BOTH[:1],
        ),
        (MISTRAL, "[TOOL_CALLS][no]", {"text": "[TOOL_CALLS][no]"}, []),
        (MISTRAL, LISTED, {"text": LISTED}, []),
        (
            NAMED,
            '[TOOL_CALLS]weather[ARGS]{"x": 1}[TOOL_CALLS]weather[CALL_ID]a1[ARGS]{}',
            {},
            [("weather", '{"x": 1}'), BOTH[1]],
        ),
    ],
)
def test_calls_in_other_models_ways(template, text, said, calls) -> None:
    for i in range(0, len(text) + 1, 2):
        assert parts([text[:i], text[i:]], asked(**TOOLS), template=template) == (said, calls), i
    assert parts(list(text), asked(**TOOLS), template=template) == (said, calls)
    one = parts(list(text), asked(**TOOLS, parallel_tool_calls=False), template=template)
    assert one[1] == calls[:1]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("template", [LLAMA, MISTRAL, XML])
async def test_an_answer_calls_in_the_models_own_way(opened: Open, tmp_path: Path, template: str) -> None:
    found = AutoTokenizer.from_pretrained(build(tmp_path))
    found.chat_template = template
    found.save_pretrained(tmp_path)
    engine = await opened(tmp_path)
    for seed in range(4):
        sampling = Sampling(1.0, seed=seed, max_tokens=400)
        request = asked(
            tools=(WEATHER, FORECAST), must_call=("forecast",), sampling=sampling, parallel_tool_calls=False
        )
        async with engine.generate(request) as answer:
            pieces = [piece async for piece in answer]
        assert pieces[-1].finish == "tool_calls"
        assert {piece.text for piece in pieces} == {""}
        (call,) = _join_calls(delta for piece in pieces for delta in piece.data or ())
        arguments = json.loads(call["function"]["arguments"])
        assert arguments["sky"] in ('a } " {', "b")
        assert set(arguments["days"]) <= {1, 2}


def test_a_forced_call_in_xml_has_texts_as_they_are_and_all_else_as_json() -> None:
    schema = {
        "type": "object",
        "properties": {
            "said": {"type": "string"},
            "to": {"enum": ["Zoë", "Bo"]},
            "often": {"type": "integer"},
            "at": {"$ref": "#/$defs/at"} | {"type": "array"},
        },
        "required": ["said", "to"],
        "$defs": {"at": {"items": {"type": "boolean"}}},
    }
    tool = {"type": "function", "function": {"name": "tell", "parameters": schema}}
    replies, prompter = made(XML)
    request = asked(tools=(tool,), must_call=("tell",))
    form = replies.structure(request, prompter.write(request)[1])
    grammars = Grammars(tokenizer(), 512, frozenset({END}))

    def call(**values: str) -> str:
        inner = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
        return f"<tool_call>\n<function=tell>\n{inner}</function>\n</tool_call>"

    whole = {"said": 'a "b"\n<c>', "to": "Zoë"}
    for values, fits in (
        (whole, True),
        (whole | {"often": "3", "at": "[true]"}, True),
        (whole | {"to": "Al"}, False),
        (whole | {"often": "x"}, False),
        (whole | {"at": "[1]"}, False),
        ({"said": "x"}, False),
    ):
        ids = prompter.encode_text(call(**values))
        if not fits:
            with pytest.raises(BadRequest, match="does not fit"):
                grammars.compile(form, ids)
            continue
        assert grammars.compile(form, ids).parser.is_accepting()
        ((_, arguments),) = parts([call(**values)], request, template=XML)[1]
        assert json.loads(arguments) == {k: v if k in whole else json.loads(v) for k, v in values.items()}


def test_a_model_with_a_response_template_is_made_to_call_in_a_way_that_it_reads() -> None:
    request = asked(**TOOLS, must_call=("weather",))
    reads = {
        "open": "<tool_call>",
        "close": "</tool_call>",
        "repeats": True,
        "content": "json",
        "transform": {"function": "{content}"},
    }
    own = OWN | {"fields": OWN["fields"] | {"tool_calls": reads}}
    replies, prompter = made(own=own)
    assert "<tool_call>" in replies.structure(request, prompter.write(request)[1]).value
    assert parts(list(ONE), request, own=own)[1][0][0] == "weather"
    for wrong, said in (({"own": OWN}, "no way to write calls"), ({"template": NAMED}, "control tokens")):
        replies, prompter = made(**wrong)
        with pytest.raises(BadRequest, match=said) as refused:
            replies.structure(request, prompter.write(request)[1])
        assert refused.value.param == "tool_choice"


def test_a_model_that_knows_no_markers_is_left_alone() -> None:
    template = "{{ tools }}{{ messages[0].content }}"
    replies, prompter = made(template)
    request = asked(**TOOLS, must_call=("weather",))
    assert replies.begin(request, "") is None
    with pytest.raises(BadRequest, match="cannot be made to call"):
        replies.structure(request, prompter.write(request)[1])


@pytest.fixture
async def engine(opened: Open, tmp_path: Path) -> TorchEngine:
    """The tiny model with a template that knows calls and thoughts."""
    found = AutoTokenizer.from_pretrained(build(tmp_path))
    found.chat_template = HERMES
    found.save_pretrained(tmp_path)
    return await opened(tmp_path)


@pytest.mark.timeout(30)
async def test_an_answer_is_made_to_call_and_goes_on_elsewhere(engine: TorchEngine) -> None:
    sampling = Sampling(1.0, seed=5, max_tokens=300)
    request = asked(tools=(WEATHER, FORECAST), must_call=("forecast",), parallel_tool_calls=False, sampling=sampling)
    async with engine.generate(request) as answer:
        pieces = [piece async for piece in answer]
    assert pieces[-1].finish == "tool_calls"
    assert {piece.kind for piece in pieces if piece.text} == set()
    (call,) = _join_calls(delta for piece in pieces for delta in piece.data or ())
    assert call["function"]["name"] == "forecast"
    assert set(json.loads(call["function"]["arguments"])) == {"sky", "days"}
    for split in range(0, len(pieces), 7):
        said = [i for piece in pieces[:split] for i in piece.token_ids]
        async with engine.generate(request, said) as answer:
            rest = [delta async for piece in answer for delta in piece.data or ()]
        before = [delta for piece in pieces[:split] for delta in piece.data or ()]
        assert _join_calls(before + rest) == [call]


@pytest.mark.timeout(30)
async def test_a_thought_that_the_prompt_begins_may_end_before_the_call(engine: TorchEngine) -> None:
    request = asked(tools=(WEATHER, FORECAST), must_call=("weather", "forecast"), template_kwargs={"thinking": True})
    structure = engine._replies.structure(request, engine._prompter.write(request)[1])
    second = '<tool_call>\n{"name": "forecast", "arguments": {"sky": "b", "days": [1, 2]}}\n</tool_call>'
    for text, fits in (
        (f"so < so\n</think>\n\n{ONE}\n{second}", True),
        (f"so</think>\n\n{second.replace('[1, 2]', '[3]')}", False),
        (f"so</think>\n\nno {ONE}", False),
    ):
        ids = engine._prompter.encode_text(text)
        if fits:
            assert engine._grammars.compile(structure, ids).parser.is_accepting()
        else:
            with pytest.raises(BadRequest, match="does not fit"):
                engine._grammars.compile(structure, ids)


def test_calls_that_are_written_again_are_told_once() -> None:
    def frame(seq: int, epoch: int, *deltas: Any) -> Frame:
        return Frame("r", seq, epoch, kind="tool", data=list(deltas))

    def piece(text: str) -> dict[str, Any]:
        return {"index": 0, "function": {"arguments": text}}

    head = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    progress = Progress()
    frames = [
        frame(0, 1, head, piece("{")),
        frame(1, 1, piece('"a')),
        frame(1, 2, piece('"a": ')),
        frame(2, 2, piece("1}")),
    ]
    calls = _join_calls(delta for one in frames for delta in progress.take(one).calls)
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
