import pickle

import pytest

from broker.errors import BadRequest, FleetError, QueueFull, from_map
from broker.messages import (
    ChatRequest,
    Frame,
    Message,
    ModelCard,
    Sampling,
    Structure,
    TokenRequest,
    new_id,
    pack,
    unpack,
)


def test_a_request_comes_back_as_it_was():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = (
        Message("user", "你好 🙂"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "x", tool_call_id="c"),
    )
    sampling = Sampling(
        0.0, 0.9, max_tokens=12, seed=7, stop=("END",), logit_bias=((5, -1.5),), structure=Structure("choice", '["a"]')
    )
    tool = {"type": "function", "function": {"name": "f"}}
    request = ChatRequest("m", messages, sampling, owner="o", keep=True, tools=(tool,), template_kwargs={"think": True})
    assert ChatRequest.decode(request.encode()) == request


def test_a_question_to_a_tokenizer_comes_back_as_it_was():
    request = TokenRequest("tokenize", ChatRequest("m", (), owner="o", prompt=(1, 2)), False, False, True)
    assert TokenRequest.decode(request.encode()) == request
    assert (request.model, request.owner, request.size, request.request_id) == ("m", "o", 8, request.of.request_id)
    for wrong in (b"", pack({}), pack({"op": "tokenize", "of": b"x"}), TokenRequest("train", request.of).encode()):
        with pytest.raises(BadRequest):
            TokenRequest.decode(wrong)


def test_readers_ignore_keys_that_they_do_not_know():
    raw = unpack(Frame("r", 3, 1, "x").encode()) | {"later": 1}
    assert Frame.decode(pack(raw)) == Frame("r", 3, 1, "x")
    assert ModelCard.decode(pack(unpack(ModelCard("m", abilities=("tools",)).encode()) | {"later": 1})).abilities == (
        "tools",
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"hello", pack([1]), pack({}), pack({"messages": 3}), pickle.dumps({"model": "m"}), pack({"model": "m", "messages": [{"role": 1}], "sampling": {}})],
)  # fmt: skip
def test_a_stored_request_of_a_wrong_shape_is_a_bad_request(data):
    with pytest.raises(BadRequest):
        ChatRequest.decode(data)


def test_an_absent_value_is_left_out_of_a_frame():
    assert set(unpack(Frame("r", 0, 1, "x").encode())) == {"request_id", "seq", "epoch", "text"}


def test_ids_sort_by_time_and_do_not_repeat():
    ids = [new_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert [i[:12] for i in ids] == sorted(i[:12] for i in ids)
    assert all(len(i) == 26 for i in ids)


def test_an_error_comes_back_as_its_class():
    error = from_map(QueueFull("full", retry_after=3).to_map())
    assert (type(error), str(error), error.retry_after) == (QueueFull, "full", 3)
    assert type(from_map({"code": "from the future", "message": "x"})) is FleetError


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 2}, {"logprobs": 21}, {"min_p": 1.5}, {"top_k": -1},
     {"repetition_penalty": 0}, {"presence_penalty": 3}, {"logit_bias": [[1, float("inf")]]}, {"top_k": 2**63}, {"top_k": 4.0},
     {"logprobs": 2.5}, {"seed": 1.5}, {"stop_token_ids": ["a"]}, {"stop": ["x"] * 65}, {"stop": ["x" * 1001]}, {"max_tokens": True},
     {"temperature": None}, {"logit_bias": [[i, 1.0] for i in range(1025)]}],
)  # fmt: skip
def test_a_parameter_out_of_its_range_is_refused_by_name(wrong):
    request = unpack(ChatRequest("m", (Message("user", "hi"),)).encode())
    request["sampling"] |= wrong
    with pytest.raises(BadRequest, match=next(iter(wrong))):
        ChatRequest.decode(pack(request))


def test_all_that_goes_into_the_prompt_counts():
    plain = ChatRequest("m", (Message("user", "你好"),))
    assert plain.size == 6
    call = {"function": {"name": "f", "arguments": "x" * 1000}}
    assert ChatRequest("m", (Message("assistant", "", tool_calls=(call,)),)).size > 1000
    assert ChatRequest("m", plain.messages, template_kwargs={"a": "x" * 1000}).size > 1000
    assert ChatRequest("m", plain.messages, tools=(call,)).size > 1000


def test_a_role_that_no_template_knows_is_refused():
    raw = unpack(ChatRequest("m", (Message("x" * 10_000, "hi"),)).encode())
    with pytest.raises(BadRequest, match="role"):
        ChatRequest.decode(pack(raw))


@pytest.mark.parametrize("prompt", ["", "once upon a time <|im_end|> 🙂", (), (0, 5, 2**32 - 1), (1,) * 5000])
def test_a_prompt_comes_back_as_it_was(prompt):
    asked = ChatRequest("m", (), prompt=prompt)
    assert ChatRequest.decode(asked.encode()) == asked
    assert asked.size == (len(prompt.encode()) if isinstance(prompt, str) else 4 * len(prompt))


@pytest.mark.parametrize("prompt", [[1, -1], [1.5], ["a"], [2**32], [True], 5, {"a": 1}, [[1]]])
def test_a_prompt_of_something_else_is_a_bad_request(prompt):
    raw = unpack(ChatRequest("m", ()).encode()) | {"prompt": prompt}
    with pytest.raises(BadRequest):
        ChatRequest.decode(pack(raw))


def test_an_error_keeps_the_name_of_the_field_on_its_way():
    with pytest.raises(BadRequest) as refused:
        Sampling(top_p=3).check()
    assert from_map(refused.value.to_map()).param == "top_p"
