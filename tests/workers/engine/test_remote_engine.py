import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import ClientSession
from transformers import AutoModelForCausalLM, AutoTokenizer

from broker.errors import (
    BadRequest,
    FleetError,
    KeyRefused,
    ModelUnusable,
    Overloaded,
    PromptTooLong,
    Unavailable,
    UpstreamFailed,
    from_map,
)
from broker.messages import ChatRequest, Message, Sampling, Structure
from broker.sources import ModelSource
from helpers import eventually
from tests.workers.engine import bad_server
from tests.workers.engine.bad_server import BadServer
from workers.engine import EngineOptions, Piece, remote_engine, remote_pieces, remote_wire
from workers.engine.remote_engine import RemoteEngine, open_engine
from workers.engine.remote_model import retry_after
from workers.engine.remote_refusal import Complaint, refusal

KEY = "sk-very-secret-key-0123456789"
WORDS = "what the user says to nobody else"
Open = Callable[..., Awaitable[RemoteEngine]]


@pytest.fixture
async def server() -> AsyncIterator[BadServer]:
    async with bad_server.running() as server:
        yield server


@pytest.fixture
async def opened(server: BadServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Opens engines on models that are named for the server's behaviours; pauses between tries are short."""
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.setattr(remote_engine, "PAUSE_SECONDS", 0.01)
    async with AsyncExitStack() as stack:

        async def open_(*names: str, slots: int = 4, **more: Any) -> RemoteEngine:
            kind = {"source": server.url, "key_env": "A_KEY"} | more
            models = tuple(ModelSource(name, **kind) for name in names)
            engine = await open_engine(EngineOptions(models, slots=slots), lambda percent: None)
            stack.push_async_callback(engine.close)
            return engine

        yield open_


def request(model: str, sampling: Sampling | None = None, **more: Any) -> ChatRequest:
    return ChatRequest(model, (Message("user", WORDS),), sampling or Sampling(), **more)


async def pieces(engine: RemoteEngine, model: str, sampling: Sampling | None = None, **more: Any) -> list[Piece]:
    async with engine.generate(request(model, sampling, **more)) as answer:
        return [piece async for piece in answer]


async def text(engine: RemoteEngine, model: str) -> str:
    return "".join(piece.text for piece in await pieces(engine, model))


async def said_before(engine: RemoteEngine, model: str) -> tuple[str, FleetError]:
    """The text that came before the error with which an answer ends, and that error."""
    said = ""
    async with engine.generate(request(model)) as answer:
        try:
            async for piece in answer:
                said += piece.text
        except FleetError as error:
            return said, error
    raise AssertionError("it ended well")


async def refused(engine: RemoteEngine, model: str, kind: type[FleetError], *args: Any, **more: Any) -> FleetError:
    """The error with which an answer ends before it begins."""
    with pytest.raises(kind) as caught:
        async with engine.generate(request(model, *args, **more)):
            pass
    assert type(caught.value) is kind
    return caught.value


async def test_an_answer_comes_in_pieces_with_usage_and_a_reason(opened, server):
    engine = await opened("good")
    async with engine.generate(request("good")) as answer:
        found = [piece async for piece in answer]
    assert [piece.text for piece in found] == ["one ", "two ", ""]
    assert [piece.finish for piece in found] == [None, None, "stop"]
    assert (answer.prompt_tokens, answer.completion_tokens) == (7, 3)
    assert engine.steps > 0
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_tool_calls_come_as_their_deltas(opened):
    found = await pieces(await opened("tools"), "tools")
    assert [piece.kind for piece in found] == ["tool", "tool", "text"]
    assert found[0].data[0]["function"]["name"] == "add"
    assert found[1].data == [{"index": 0, "function": {"arguments": '{"a": 1}'}}]
    assert found[-1].finish == "tool_calls"


async def test_reasoning_has_its_own_kind_under_both_names(opened):
    found = await pieces(await opened("reasoning"), "reasoning")
    assert [(piece.kind, piece.text) for piece in found[:3]] == [
        ("reasoning", "so "),
        ("reasoning", "hm"),
        ("text", "yes"),
    ]
    assert found[-1].finish == "length"


async def test_log_probabilities_come_with_bytes_and_ids_where_given(opened):
    found = await pieces(await opened("logprobs"), "logprobs", Sampling(logprobs=1))
    (first,), (second,) = found[0].logprobs, found[1].logprobs
    assert (first.token, first.token_id, first.logprob) == (b"\xf0\x9f", -1, -0.5)
    assert (first.top[0].token, first.top[0].logprob) == (b"b", remote_wire.LOWEST)
    assert (second.token, second.token_id, found[1].text) == (b"c", 9, "c")


async def test_a_server_that_does_not_stream_is_read_whole(opened):
    engine = await opened("document")
    async with engine.generate(request("document")) as answer:
        found = [piece async for piece in answer]
    assert [(piece.text, piece.finish) for piece in found] == [("all at once", None), ("", "stop")]
    assert (answer.prompt_tokens, answer.completion_tokens) == (5, 4)


async def test_many_answers_run_at_once_and_no_more_than_there_are_slots(opened, server):
    engine = await opened("gather", slots=4)
    found = await asyncio.gather(*(text(engine, "gather") for _ in range(12)))
    assert found == ["one two "] * 12
    assert server.most == 4
    assert len(server.connections) <= 8  # finished ones are used again


async def test_leaving_early_closes_the_connection(opened, server):
    engine = await opened("silent", slots=1)
    async with engine.generate(request("silent")) as answer:
        assert (await anext(aiter(answer))).text == "one "
    async with asyncio.timeout(1):
        await server.gone.wait()


async def test_cancelling_before_the_first_byte_closes_the_connection(opened, server):
    engine = await opened("slow", slots=1)
    task = asyncio.create_task(pieces(engine, "slow"))
    await eventually(lambda: server.running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(1):
        await server.gone.wait()


async def test_closing_the_engine_ends_what_is_under_way(opened):
    engine = await opened("silent")
    async with engine.generate(request("silent")) as answer:
        assert (await anext(aiter(answer))).text == "one "
        await engine.close()
        with pytest.raises(UpstreamFailed):
            await anext(aiter(answer))
    assert not engine.alive


async def test_a_slow_first_byte_has_a_limit_and_no_second_try(opened, server, monkeypatch):
    monkeypatch.setattr(remote_engine, "FIRST_SECONDS", 0.2)
    error = await refused(await opened("slow"), "slow", Unavailable)
    assert "did not begin" in str(error)
    assert server.tries["slow"] == 1


async def test_silence_in_the_middle_ends_the_answer(opened, monkeypatch):
    monkeypatch.setattr(remote_pieces, "SILENCE_SECONDS", 0.2)
    said, error = await said_before(await opened("silent"), "silent")
    assert said == "one "
    assert isinstance(error, UpstreamFailed)
    assert "silent" in str(error)


async def test_comments_keep_an_answer_alive(opened, monkeypatch):
    monkeypatch.setattr(remote_pieces, "SILENCE_SECONDS", 0.2)
    assert await text(await opened("keep_alive"), "keep_alive") == "one two "


@pytest.mark.parametrize("name", ["cut", "unfinished"])
async def test_a_cut_in_the_middle_ends_the_answer_and_is_not_tried_again(opened, server, name):
    said, error = await said_before(await opened(name), name)
    assert said == "one two "
    assert isinstance(error, UpstreamFailed)
    assert "broke off" in str(error)
    assert server.tries[name] == 1


@pytest.mark.parametrize("name", ["cut_early", "overloaded"])
async def test_what_fails_before_the_first_piece_is_tried_again(opened, server, name):
    assert await text(await opened(name), name) == "one two "
    assert server.tries[name] == 3


@pytest.mark.parametrize("name", ["fails", "no_answer"])
async def test_tries_come_to_an_end(opened, server, name):
    error = await refused(await opened(name), name, Unavailable)
    assert server.tries[name] == remote_engine.TRIES
    assert name == "no_answer" or 'failed or is overloaded (500): "CUDA error: out of memory"' in str(error)


async def test_a_short_rate_limit_is_waited_for(opened, server):
    assert await text(await opened("short_rate_limit"), "short_rate_limit") == "one two "
    assert server.tries["short_rate_limit"] == 2


@pytest.mark.parametrize(("name", "seconds"), [("rate_limit", 30), ("error_document", 77)])
async def test_a_long_rate_limit_is_for_the_user(opened, server, name, seconds):
    error = await refused(await opened(name), name, Overloaded)
    assert error.retry_after == seconds
    assert server.tries[name] == 1


async def test_text_is_whole_characters_wherever_the_bytes_are_cut(opened):
    found = await text(await opened("half_characters"), "half_characters")
    assert found == "é😀好" + "😀!" + "\ufffd" + "\ufffd"
    found.encode()  # no lone surrogate


async def test_events_may_have_any_line_ends_comments_and_several_lines(opened):
    found = await pieces(await opened("odd_events"), "odd_events")
    assert [(piece.text, piece.finish) for piece in found] == [("odd", None), ("", "stop")]


async def test_events_do_not_depend_on_where_the_bytes_are_cut():
    raw = b"\xef\xbb\xbfdata: a\rdata:b\r\n\r\n: no\n\ndata:  \xe5\xa5\xbd\n\ndata: [DONE]\n\ndata: lost\n"
    for size in range(1, len(raw)):
        events = remote_wire.Events()
        found = [event for i in range(0, len(raw), size) for event in events.feed(raw[i : i + size])]
        assert found == ["a\nb", " 好", "[DONE]"], size


async def test_the_end_of_the_stream_is_not_waited_for_long(opened, monkeypatch):
    monkeypatch.setattr(remote_pieces, "TAIL_SECONDS", 0.1)
    async with asyncio.timeout(1):
        assert await text(await opened("lingering"), "lingering") == "one two "


async def test_a_stream_may_end_without_a_reason(opened):
    found = await pieces(await opened("only_done"), "only_done")
    assert [(piece.text, piece.finish) for piece in found] == [("end", None), ("", "stop")]


@pytest.mark.parametrize("name", ["bad_json", "flood", "gives_up"])
async def test_nonsense_ends_the_answer_behind_what_was_said(opened, name):
    said, error = await said_before(await opened(name), name)
    assert said == "so far "
    assert type(error) is UpstreamFailed


async def test_an_error_inside_the_stream_ends_the_answer(opened, server):
    said, error = await said_before(await opened("error_inside"), "error_inside")
    assert said == "so far "
    assert isinstance(error, Unavailable)
    assert "out of memory" in str(error)
    assert server.tries["error_inside"] == 1


@pytest.mark.parametrize("name", ["page", "other_document", "redirect", "unknown_model"])
async def test_a_server_that_is_no_such_server_is_said_to_be_one(opened, server, name):
    await refused(await opened(name), name, UpstreamFailed)
    assert server.tries[name] == 1


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "x",
        7,
        {"choices": 5},
        {"choices": ["x"]},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {"content": 5}}]},
        {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a"}]}}]},
        {"choices": [{"delta": {"tool_calls": ["x"]}}]},
        {"choices": [{"delta": {"content": "a"}, "finish_reason": ["x"]}]},
        {"choices": [], "usage": {"prompt_tokens": "many"}},
        {"choices": [], "usage": {"prompt_tokens": 1e400}},
    ],
)
def test_a_document_of_a_wrong_shape_is_noticed(document):
    with pytest.raises(remote_wire.WRONG):
        remote_wire.Reader().read(document)


async def test_a_refused_key_is_told_apart_and_never_shown(opened, server, caplog):
    caplog.set_level(logging.DEBUG)
    engine = await opened("refuses_key", "no_money", "tells_key")
    error = await refused(engine, "refuses_key", KeyRefused)
    assert "operator" in str(error)
    assert type(from_map(error.to_map())) is KeyRefused
    await refused(engine, "no_money", KeyRefused)
    quoted = str(await refused(engine, "tells_key", BadRequest))
    assert "*** or http://***@host/ and so on" in quoted
    assert len(quoted) < 300
    for shown in (str(error), quoted, caplog.text, repr(engine.cards), repr(list(engine._models.values()))):
        assert KEY not in shown
        assert WORDS not in shown
    assert server.tries == {"models": 1, "refuses_key": 1, "no_money": 1, "tells_key": 1}


async def test_a_conversation_that_is_too_long_is_told_apart(opened):
    error = await refused(await opened("too_long"), "too_long", PromptTooLong)
    assert "4096" in str(error)


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (400, {"error": {"message": "too much", "code": "context_length_exceeded"}}),
        (400, {"object": "error", "message": "This model's maximum context length is 6 tokens", "code": 400}),
        (400, {"error": {"code": 400, "message": "too much", "type": "exceed_context_size_error", "n_ctx": 8}}),
        (500, {"error": {"message": "the request exceeds the available context size. try increasing it"}}),
        (400, {"error": {"message": "Requested tokens (2285) exceed context window of 2048"}}),
        (400, {"error": {"message": "prompt is too long: 200001 tokens > 200000 maximum"}}),
        (400, [{"error": {"message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}}]),
        (400, {"message": "x", "detail": "Input length (9 tokens) exceeds the maximum allowed length (8 tokens)."}),
        (
            400,
            {
                "error": {
                    "message": "You passed 25 input tokens and requested 1000 output tokens. However, the model's "
                    "context length is only 1024 tokens.",
                    "param": "input_tokens",
                }
            },
        ),
    ],
)
def test_servers_have_many_words_for_too_long(status, document):
    complaint = Complaint.of(document)
    assert isinstance(refusal("m", status, complaint, {}, (), None), PromptTooLong)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"error": {"type": "overloaded_error", "message": "Overloaded"}}, Unavailable),
        ({"error": {"type": "rate_limit_error", "message": "Slow down"}}, Overloaded),
        ({"error": {"code": "401", "message": "No"}}, KeyRefused),
        ({"error": {"code": 400, "message": "No"}}, BadRequest),
        ({"error": "CUDA out of memory \ud800"}, Unavailable),
        ({"error": {"message": {"odd": 1}, "code": []}}, Unavailable),
    ],
)
def test_an_error_without_a_status_is_told_apart_by_its_code(document, kind):
    error = refusal("m", 200, Complaint.of(document), {}, (), None)
    assert type(error) is kind
    str(error).encode()


async def test_a_parameter_that_the_server_refuses_is_named(opened, server):
    engine = await opened("strict")
    error = await refused(engine, "strict", BadRequest, Sampling(top_k=5))
    assert "The server behind strict refused top_k" in str(error)
    assert await text(engine, "strict") == "one two "


async def test_what_a_server_need_not_know_is_left_out_or_called_otherwise(opened, server):
    engine = await opened("newer")
    sampling = Sampling(temperature=1, max_tokens=9, seed=3)
    assert (await pieces(engine, "newer", sampling))[-1].finish == "stop"
    assert server.tries["newer"] == 4
    await pieces(engine, "newer", sampling)
    assert server.tries["newer"] == 5  # it has been learnt
    assert server.bodies[-1].keys() == {"model", "messages", "stream", "temperature", "max_completion_tokens"}
    error = await refused(engine, "newer", BadRequest, Sampling(temperature=0.5))
    assert "refused temperature" in str(error)


def test_a_default_is_not_sent_and_everything_else_is():
    plain = remote_wire.body(request("m"), "theirs")
    assert plain == {
        "model": "theirs",
        "messages": [{"role": "user", "content": WORDS}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
    }
    sampling = Sampling(
        temperature=0,
        top_p=0.5,
        top_k=4,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias=((5, -1.0),),
        max_tokens=8,
        min_tokens=2,
        ignore_eos=True,
        seed=2**63 - 1,
        stop=("a",),
        stop_token_ids=(3,),
        logprobs=2,
    )
    tool = {"type": "function", "function": {"name": "f"}}
    more = {"tools": (tool,), "template_kwargs": {"enable_thinking": False}, "continue_final_message": True}
    more |= {"must_call": ("f",), "parallel_tool_calls": False}
    full = json.loads(json.dumps(remote_wire.body(request("m", sampling, **more), "theirs")))
    assert {name: value for name, value in full.items() if name not in plain} == {
        "top_p": 0.5,
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logit_bias": {"5": -1.0},
        "max_tokens": 8,
        "min_tokens": 2,
        "ignore_eos": True,
        "seed": 2**63 - 1,
        "stop": ["a"],
        "stop_token_ids": [3],
        "logprobs": True,
        "top_logprobs": 2,
        "tool_choice": tool,
        "parallel_tool_calls": False,
        "tools": [tool],
        "chat_template_kwargs": {"enable_thinking": False},
        "continue_final_message": True,
        "add_generation_prompt": False,
    }


@pytest.mark.parametrize(
    ("structure", "sent"),
    [
        (
            Structure("json_schema", '{"type": "object"}'),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        (Structure("json_object"), {"response_format": {"type": "json_object"}}),
        (Structure("regex", "a+"), {"structured_outputs": {"regex": "a+"}, "regex": "a+"}),
        (
            Structure("choice", '["a", "b"]'),
            {"structured_outputs": {"choice": ["a", "b"]}, "ebnf": 'root ::= "a" | "b"'},
        ),
        (Structure("grammar", "start: A"), {"structured_outputs": {"grammar": "start: A"}, "ebnf": "start: A"}),
    ],
)
def test_a_structure_goes_under_the_names_of_openai_vllm_and_sglang(structure, sent):
    body = remote_wire.body(request("m", Sampling(structure=structure)), "theirs")
    assert sent.items() <= body.items()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(prompt_logprobs=0), Sampling(structure=Structure("magic")), Sampling(structure=Structure("choice", "?"))],
)
def test_what_no_such_server_takes_is_refused_by_name(sampling):
    with pytest.raises(BadRequest, match=r"prompt_logprobs|magic|choice"):
        remote_wire.body(request("m", sampling), "theirs")


async def test_cards_have_what_the_server_says_unless_the_operator_does(opened, server):
    engine = await opened("good", "tools", "cut", licence="MIT", description="Elsewhere")
    assert [(card.name, card.context) for card in engine.cards] == [("good", 4096), ("tools", 8192), ("cut", 0)]
    assert (engine.cards[0].licence, engine.cards[0].description) == ("MIT", "Elsewhere")
    assert server.tries["models"] == 1  # one question for all three
    told = await opened("mine", upstream="good", context=100)
    assert [(card.name, card.context) for card in told.cards] == [("mine", 100)]
    assert await text(told, "mine") == "one two "


async def test_a_server_that_is_not_there_yet_is_no_error_until_it_is_asked(opened, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    engine = await opened("good", source=f"http://127.0.0.1:{port}/v1")
    assert "does not answer yet" in caplog.text
    assert "cannot be reached" in str(await refused(engine, "good", Unavailable))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is to hold"),
        ({"key_env": "", "key_file": "/no/such/file"}, "from the file /no/such/file: No such file"),
        ({"key_env": "TWO_LINES"}, "the environment variable TWO_LINES is no key"),
        ({"source": "http://me:hidden@host:port/v1"}, "its address cannot be used"),
        ({"source": "http://me:hidden@host/v1"}, "its address cannot be used"),
        ({"source": "http://host/v1?key=hidden"}, "its address cannot be used"),
        ({"source": "http:///v1"}, "its address cannot be used"),
    ],
)
async def test_a_key_or_address_that_is_missing_is_named(opened, monkeypatch, more, sentence):
    monkeypatch.setenv("TWO_LINES", "hidden\nhidden")
    with pytest.raises(ModelUnusable, match=sentence) as caught:
        await opened("good", **more)
    assert "hidden" not in str(caught.value)


async def test_a_key_may_be_in_a_file(opened, server, tmp_path):
    (tmp_path / "key").write_text(KEY + "\n")
    await pieces(await opened("good", key_env="", key_file=str(tmp_path / "key")), "good")
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("1.2", 2),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2999 07:28:00 GMT", 86_400),
        ("nan", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_has_seconds_or_a_date(value, seconds):
    assert retry_after({"Retry-After": value}) == seconds


@pytest.fixture
def serve(folder: Path, tmp_path: Path) -> Iterator[str]:
    """The address of `transformers serve` with the tiny model, while it starts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()


@pytest.mark.timeout(60)
async def test_greedy_text_of_transformers_serve_is_that_of_generate(serve, folder, tmp_path):
    async def answers() -> bool:
        try:
            async with ClientSession() as session, session.get(serve.replace("/v1", "/health")) as response:
                return response.status == 200
        except OSError:
            return False

    await eventually(answers, 50)
    source = ModelSource("there", serve, upstream=str(folder))
    engine = await open_engine(EngineOptions((source,)), lambda percent: None)
    try:
        sampling = Sampling(temperature=0, max_tokens=24)
        async with engine.generate(request("there", sampling)) as answer:
            found = [piece async for piece in answer]
        with pytest.raises(BadRequest, match="top_k"):
            await pieces(engine, "there", Sampling(top_k=5))
    finally:
        await engine.close()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": WORDS}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        ids = AutoModelForCausalLM.from_pretrained(folder).generate(**prompt, do_sample=False, max_new_tokens=24)[0]
    ids = ids[prompt["input_ids"].shape[1] :]
    assert "".join(piece.text for piece in found) == tokenizer.decode(ids, skip_special_tokens=True)
    assert found[-1].finish == "length"
    assert (answer.prompt_tokens, answer.completion_tokens) == (prompt["input_ids"].shape[1], 24)
