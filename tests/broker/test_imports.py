import json
import time

import pytest

from broker import imports
from broker.errors import BadRequest
from talk import parse


def node(name, parent, role="", *parts, kind="text", **more):
    message = None
    if role:
        content = {"content_type": kind, "parts": list(parts)}
        message = {
            "author": {"role": role},
            "content": content,
            "create_time": 1_700_000_000.5,
            "recipient": "all",
        } | more
    return {name: {"id": name, "parent": parent, "children": [], "message": message}}


CHATGPT = {
    "title": "A trip",
    "create_time": 1_700_000_000.25,
    "update_time": 1_700_000_100.0,
    "current_node": "tool",
    "mapping": node("root", None)
    | node("system", "root", "system", "be good")
    | node("q", "system", "user", "Where to? 🙂")
    | node("a1", "q", "assistant", "Rome", metadata={"model_slug": "gpt-4o"})
    | node("call", "q", "assistant", "search()", kind="code", recipient="browser")
    | node("tool", "call", "tool", "found")
    | node("a2", "tool", "assistant", "", "Oslo")
    | node("hidden", "a2", "user", "x", metadata={"is_visually_hidden_from_conversation": True})
    | node("q2", "hidden", "user", {"content_type": "image_asset_pointer"}, "and this?", kind="multimodal_text"),
}


def test_chatgpts_tree_keeps_its_branches_and_times():
    (found,) = parse(json.dumps([CHATGPT]))
    assert (found.title, found.created, found.updated) == ("A trip", 1_700_000_000_250, 1_700_000_100_000)
    assert {name: m["parent"] for name, m in found.messages.items()} == {"q": "", "a1": "q", "a2": "q", "q2": "a2"}
    assert found.messages["a1"]["model"] == "gpt-4o"
    assert found.messages["q"]["parts"] == [{"kind": "text", "text": "Where to? 🙂"}]
    assert found.messages["q2"]["parts"][0]["text"] == "and this?"
    assert found.leaf == "q"


def state(*said, name="m", conv_id="c", **more):
    return {
        "template_name": "one_shot", "system_message": "Be kind.", "roles": ["USER", "ASSISTANT"],
        "messages": [list(pair) for pair in said], "offset": 0, "conv_id": conv_id, "model_name": name,
    } | more  # fmt: skip


def line(kind, **more):
    return json.dumps({"tstamp": 1_700_000_000.1234, "type": kind, "ip": "1.2.3.4"} | more)


def test_of_a_fastchat_log_the_last_record_of_each_conversation_counts_and_a_battle_gives_two():
    short, long = (
        [("USER", "hi"), ("ASSISTANT", "hello")],
        [("USER", "hi"), ("ASSISTANT", "hello"), ("USER", "bye"), ("ASSISTANT", None)],
    )
    text = "\n".join(
        [
            line("chat", model="m", state=state(*short)),
            line("chat", model="m", state=state(*long)),
            line("chat", model="m", state=state(("USER", ["see", ["md5"]]), ("ASSISTANT", "yes"), conv_id="p")),
            "",
            line(
                "leftvote",
                models=["", ""],
                states=[state(*short, name="a", conv_id="x"), state(*short, name="b", conv_id="y")],
            ),
        ]
    )
    found = parse(text)
    assert [len(f.messages) for f in found] == [3, 2, 2, 2]
    assert [f.messages["1"]["model"] for f in found] == ["m", "m", "a", "b"]
    assert (found[0].system, found[0].title, found[0].created) == ("Be kind.", "hi", 1_700_000_000_123)
    assert found[1].messages["0"]["parts"][0]["text"] == "see"
    assert "1.2.3.4" not in repr(found)


def test_few_shot_examples_before_the_offset_are_left_out():
    (found,) = parse(line("chat", state=state(("USER", "example"), ("ASSISTANT", "shown"), ("USER", "real"), offset=2)))
    assert [m["parts"][0]["text"] for m in found.messages.values()] == ["real"]


def test_openais_messages():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url"}]},
        {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
        {"role": "tool", "content": "left out"},
        {"role": "assistant", "content": None},
    ]
    (found,) = parse("\ufeff" + json.dumps({"messages": messages}))
    assert (found.system, found.title, list(found.messages)) == ("Be brief.", "look", ["1", "2"])
    assert [p["kind"] for p in found.messages["2"]["parts"]] == ["reasoning", "text"]
    assert abs(found.created - 1000 * time.time()) < 60_000


def user(parent="", name="a", **more):
    return {"message_id": name, "role": "user", "parent": parent, "parts": [{"kind": "text", "text": "hi"}]} | more


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "not JSON"),
        ("[", "line 1 column 2"),
        ("[]", "no conversation"),
        ("5", "The file: an object"),
        ("[[]]", r"\[0\]: an object"),
        ('[{"a": 1}]', r"\[0\]: this is no conversation"),
        ('{"conversations": 3}', "conversations: a list"),
        ('{"messages": []}\n{"messages": [}', "line 2: this is not JSON"),
        ('{"messages": []}\n7', "line 2: an object"),
        ("[" * 100_000, "nested too deep"),
        ('{"tree": ' + "[" * 100_000, "nested too deep|not JSON"),
        (json.dumps([CHATGPT | {"mapping": []}]), r"\[0\]\.mapping: an object"),
        (json.dumps([CHATGPT | {"title": 5}]), r"\[0\]\.title: text"),
        (json.dumps([CHATGPT, CHATGPT | {"mapping": {"x": {"parent": None, "message": {"author": "me"}}}}]), r"\[1\]\.mapping\[x\]\.message\.author: an object"),
        (json.dumps([CHATGPT | {"mapping": node("x", "y", "user", "hi") | node("y", "x")}]), "circle"),
        (json.dumps({"tree": [user("b"), user("a", "b")]}), "circle"),
        (json.dumps({"tree": [user("nobody")]}), "'a' has a parent that is not there"),
        (json.dumps({"conversations": [{"tree": [user(role="root")]}]}), r"conversations\[0\]\.tree\[0\]\.role"),
        (json.dumps({"tree": [user(parts=[{"kind": "html", "text": ""}])]}), r"tree\[0\]\.parts\[0\]\.kind"),
        (json.dumps({"tree": [user(parts=[{"kind": "text"}])]}), r"tree\[0\]\.parts\[0\]\.text"),
        (json.dumps({"tree": [user(parts=[{"kind": "file", "text": ""}])]}), r"tree\[0\]\.parts\[0\]\.name"),
        (json.dumps({"messages": [{"role": "user", "content": 5}]}), r"messages\[0\]\.content"),
        (line("chat", state=state(("NOBODY", "hi"))), r"state\.messages\[0\]"),
        (line("chat", state=state(("USER", {}))), r"state\.messages\[0\]"),
        (line("chat", state=5), "state: an object"),
        (line("leftvote", states=[state(("USER", "a")), None]), r"states\[1\]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_place(text, where):
    with pytest.raises(BadRequest, match=where):
        parse(text)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(BadRequest, match="byte 1 is not UTF-8"):
        imports.parse(b"[\xff]")


def test_odd_values_do_no_harm():
    odd = user(
        created=float("1e308"), usage={"prompt_tokens": 10**400, "completion_tokens": 3, "x": "y"}, note="n" * 10**6
    )
    text = json.dumps(
        {"title": "🙂" * 10_000, "created": -5, "updated": 10**18, "tags": ["a" * 100, 5, ""], "tree": [odd]}
    )
    (found,) = parse(text.replace('"hi"', r'"\ud83d half"'))
    message = found.messages["a"]
    assert (message["usage"], message["parts"][0]["text"], len(message["note"])) == (
        {"completion_tokens": 3},
        "? half",
        2000,
    )
    assert len(found.title) == 61
    assert found.tags == ("a" * 40,)
    assert 0 <= found.created <= found.updated <= 1000 * time.time()


def test_sizes_are_limited(monkeypatch):
    monkeypatch.setattr(imports, "MOST", 2)
    monkeypatch.setattr(imports, "MOST_MESSAGES", 2)
    with pytest.raises(BadRequest, match="more than 2 conversations"):
        parse(json.dumps([{"messages": [{"role": "user", "content": "x"}]}] * 3))
    with pytest.raises(BadRequest, match=r"\[0\]: it has more than 2 messages"):
        parse(json.dumps([{"messages": [{"role": "user", "content": "x"}] * 3}]))


def test_a_long_chain_is_no_trouble():
    nodes = node("0", None, "user", "hi")
    for i in range(1, 3000):
        nodes |= node(str(i), str(i - 1), "assistant", "x") if i % 500 == 0 else node(str(i), str(i - 1))
    (found,) = parse(json.dumps([CHATGPT | {"mapping": nodes, "current_node": "2999"}]))
    assert found.leaf == "2500"
    assert found.messages["1000"]["parent"] == "500"
