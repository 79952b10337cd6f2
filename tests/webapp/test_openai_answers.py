"""From frames to OpenAI's objects: what is new in them, also when Redis has lost some and they are written again."""

import pytest

from broker.errors import RanTooLong, RateLimited
from broker.messages import ChatRequest, Frame
from helpers import request
from webapp import openai_answers
from webapp.openai_answers import ChatForm, CompletionForm, Paper, Progress, Said


def token(text: str | bytes, logprob: float = -1.0, *top: dict) -> dict:
    spelt = text.encode() if isinstance(text, str) else text
    return {"token_id": 1, "token": list(spelt), "logprob": logprob, **({"top": list(top)} if top else {})}


def scored(seq: int, epoch: int, *texts: str) -> Frame:
    return Frame("r", seq, epoch, "".join(texts), logprobs=[token(text) for text in texts])


def test_what_is_written_again_in_other_pieces_is_told_once():
    progress = Progress()
    frames = [
        scored(0, 1, "a"),
        scored(1, 1, "b"),
        scored(2, 1, "c", "d"),
        scored(1, 2, "b", "c", "d", "e"),
        scored(2, 2, "f"),
    ]
    news = [progress.take(frame) for frame in frames]
    assert [said.text for said in news] == ["a", "b", "cd", "e", "f"]
    assert [len(said.tokens) for said in news] == [1, 1, 2, 1, 1]


def test_what_is_written_again_and_is_not_as_far_yet_tells_nothing():
    progress = Progress()
    frames = [scored(0, 1, "a"), scored(1, 1, "b", "c", "d"), scored(1, 2, "b"), scored(2, 2, "c", "d", "e")]
    assert "".join(progress.take(frame).text for frame in frames) == "abcde"


def test_the_end_has_the_reason_and_the_counts_and_an_error_is_raised():
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    for reason, finish in (("length", "length"), ("stop", "stop"), ("cancelled", "stop"), ("tool_calls", "tool_calls")):
        said = Progress().take(Frame("r", 0, 1, "x", end={"reason": reason, "usage": usage}))
        assert (said.finish, said.usage) == (finish, (3, 2))
    with pytest.raises(RanTooLong):
        Progress().take(Frame("r", 0, 1, end={"reason": "error", "error": RanTooLong().to_map()}))


def test_reasoning_and_tool_calls_go_out_as_such():
    progress, form, whole = Progress(), ChatForm(logprobs=False), Said()
    calls = [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}]
    more = [{"index": 0, "function": {"arguments": ": 1}"}}]
    frames = [
        Frame("r", 0, 1, "hm", "reasoning"),
        Frame("r", 1, 1, "", "tool", data=calls),
        Frame("r", 2, 1, "", "tool", data=more),
        Frame("r", 3, 1, end={"reason": "tool_calls"}),
    ]
    deltas = []
    for frame in frames:
        said = progress.take(frame)
        whole.add(said)
        deltas.append(form.chunk(0, said)["delta"])
    assert deltas == [{"role": "assistant", "reasoning_content": "hm"}, {"tool_calls": calls}, {"tool_calls": more}, {}]
    message = form.whole(0, whole)["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    ]


def test_a_chunk_has_one_delta_of_one_call():
    calls = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": "{"}},
        {"index": 0, "function": {"arguments": "}"}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}},
    ]
    paper = Paper(ChatForm(False), [request()], 1, 1)
    first, second = (chunk["choices"][0] for chunk in paper.chunks(0, Said(calls=calls, finish="tool_calls")))
    whole = calls[0] | {"function": {"name": "f", "arguments": "{}"}}
    assert first["delta"] == {"role": "assistant", "tool_calls": [whole]}
    assert second["delta"] == {"tool_calls": [calls[3]]}
    assert (first["finish_reason"], second["finish_reason"]) == (None, "tool_calls")


def test_a_server_behind_may_send_deltas_of_calls_without_a_function():
    calls = [{"index": 0, "id": "a", "type": "function"}, {"index": 0, "function": {"name": "f", "arguments": "{}"}}]
    paper = Paper(ChatForm(False), [request()], 1, 1)
    chunks = [chunk for call in calls for chunk in paper.chunks(0, Said(calls=[call]))]
    told = [delta for chunk in chunks for delta in chunk["choices"][0]["delta"]["tool_calls"]]
    assert openai_answers._join_calls(told) == openai_answers._join_calls(calls)


def test_half_characters_infinities_and_tokens_of_one_text_are_json():
    form = CompletionForm([ChatRequest("m", (), prompt=(1, 2))], echo=True, logprobs=2)
    said = Progress().take(
        Frame(
            "r", 0, 1, "x",
            logprobs=[token(b"\xe4", -float("inf"), token(b"\xe5", -0.5), token(b"\xe4", -float("inf")))],
            data={"prompt_logprobs": [None, token("b")], "prompt_first": {"token_id": 7, "token": list(b"a")}},
        )
    )  # fmt: skip
    choice = form.chunk(0, said)
    openai_answers.dump(choice)
    assert choice["text"] == "abx"
    found = choice["logprobs"]
    assert found["tokens"] == ["a", "b", "\ufffd"]
    assert found["token_logprobs"] == [None, -1.0, openai_answers.LOWEST]
    assert found["top_logprobs"] == [None, {"b": -1.0}, {"\ufffd": -0.5}]
    assert found["text_offset"] == [0, 1, 2]
    later = form.chunk(0, Said(text="y", tokens=[token("yy")]))
    assert (later["text"], later["logprobs"]["text_offset"]) == ("y", [3])


def test_a_prompt_counts_once_and_the_best_come_first():
    assert openai_answers.usage([(3, 1), (3, 2), (5, 4), (0, 0)], 2) == {
        "prompt_tokens": 8,
        "completion_tokens": 7,
        "total_tokens": 15,
    }
    answers = [Said(str(i), tokens=[token("x", p), token("x", p)]) for i, p in enumerate((-3.0, -1.0, -2.0))]
    assert [said.text for said in openai_answers.best([*answers, Said("none")], 2)] == ["1", "2"]


def test_errors_are_openais_objects():
    assert openai_answers.error(RateLimited("slower")) == {
        "error": {"message": "slower", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
    }
