"""Reasoning and calls are told apart wherever the text is cut, and all that is neither comes out as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from broker.errors import BadRequest
from broker.messages import ChatRequest, Frame, Message, Sampling
from tests.tiny_model import build, tokenizer
from tests.workers.engine.conftest import Open
from webapp.openai_answers import Progress, _join_calls
from workers.engine.prompt import Prompter
from workers.engine.replies import Part, Replies
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
    template = HERMES.replace('{"name": ...}', "<function=a>")
    text = "<tool_call>\n<function=weather>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    assert parts(list(text), asked(**TOOLS), template=template) == ({}, [("weather", '{"x": "1"}')])


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
