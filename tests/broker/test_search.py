import time

import pytest

from broker import search, shelf
from broker.errors import BadRequest
from broker.imports import Imported
from broker.transcripts import store
from talk import imported, talk

pytestmark = pytest.mark.usefixtures("card")


async def found(broker, query, owner="anna"):
    return [r.conversation.conversation_id for r in (await search.find(broker, owner, query)).results]


@pytest.mark.parametrize(
    ("said", "query"),
    [
        ("The Quick fox", "quick"),
        ("STRASSE", "straße"),
        ("Straße", "STRASSE"),
        ("今天天氣很好", "天氣"),
        ("Привет, мир", "ПРИВЕТ"),
        ("Cafe\u0301 au lait", "café"),
        ("café au lait", "CAFE\u0301"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("안녕하세요 세계", "세계"),
        ("مرحبا بالعالم", "بالعالم"),
        ("a 👩‍👩‍👧 family", "👩‍👩‍👧"),
        ("the fox is quick", "quick FOX"),
        ("100% (a+b)*c", "(a+b)*"),
    ],
)
async def test_every_script_is_found_whatever_its_case(broker, said, query):
    (one,) = await imported(broker, 5, text=said)
    await imported(broker, 6, text="something else")
    (result,) = (await search.find(broker, "anna", query)).results
    assert result.conversation.conversation_id == one
    assert "".join(result.snippet) == said
    assert search.fold(result.snippet[1]) in search.fold(query)
    assert result.message_id in (await _ids(broker, one))


async def _ids(broker, one):
    from broker import conversations

    return (await conversations.load(broker, one, "anna"))[1]


async def test_titles_are_searched_and_marked(broker):
    one = await talk(broker, "what is a Fox?", "An animal.")
    await shelf.rename(broker, one, "anna", "About foxes")
    (result,) = (await search.find(broker, "anna", "fox")).results
    assert result.title == ("About ", "fox", "es")
    assert result.snippet == ("what is a ", "Fox", "?")
    (result,) = (await search.find(broker, "anna", "about animal")).results
    assert result.snippet == ("An ", "animal", ".")
    (result,) = (await search.find(broker, "anna", "about")).results
    assert (result.snippet, result.message_id) == ((), "")


async def test_an_attached_file_is_found_by_its_name_and_by_what_is_in_it(broker):
    parts = [
        {"kind": "file", "name": "Rezepte.txt", "text": "eggs\nand MILK"},
        {"kind": "text", "text": "what can I cook?"},
    ]
    message = {"role": "user", "parent": "", "created": 1, "parts": parts}
    await store(broker, "anna", [Imported("dinner", 5, 5, "a", {"a": message})])
    for query, hit, after in (
        ("rezepte", "Rezepte", ".txt: eggs and MILK"),
        ("milk cook", "cook", "? Rezepte.txt: eggs and "),
    ):
        (result,) = (await search.find(broker, "anna", query)).results
        assert result.snippet[1:3] == (hit, after)
        assert result.message_id in (await _ids(broker, result.conversation.conversation_id))
    assert await found(broker, "file") == []


async def test_what_nobody_reads_is_not_found(broker):
    await talk(broker, "hello", "there")
    for word in ("assistant", "parts", "created", "text", "stop"):
        assert await found(broker, word) == []


async def test_the_latest_come_first_also_archived_ones_and_nobody_elses(broker):
    made = await imported(broker, 1, 2, 3)
    await shelf.archive(broker, made[1], "anna", True)
    assert await found(broker, "word") == made
    assert await found(broker, "word", "ben") == []
    await shelf.delete(broker, made[0], "anna")
    assert await found(broker, "word") == made[1:]


async def test_a_call_looks_for_a_short_time_and_says_where_to_go_on(broker):
    made = await imported(broker, *range(100))
    results, before, calls = [], "", 0
    while True:
        call = await search.find(broker, "anna", "word", before, seconds=0)
        assert len(call.results) <= search.BATCH
        results += [r.conversation.conversation_id for r in call.results]
        before, calls = call.after, calls + 1
        if not before:
            break
    assert (results, calls) == (made, 7)
    call = await search.find(broker, "anna", "word", seconds=60)
    assert len(call.results) < search.FOUND + search.BATCH
    assert call.after


async def test_a_snippet_is_a_line_around_the_word(broker):
    await imported(broker, 5, text="some words before\n\n" * 900 + "THE\tNEEDLE  is here " + "and so on " * 900)
    (result,) = (await search.find(broker, "anna", "needle")).results
    before, hit, after = result.snippet
    assert before.startswith("…")
    assert before.endswith("words before THE ")
    assert (hit, after[:8], after[-1]) == ("NEEDLE", " is here", "…")
    assert sum(map(len, result.snippet)) < 180


@pytest.mark.parametrize("query", ["", "  ", "x" * 201])
async def test_a_bad_query_is_refused(broker, query):
    with pytest.raises(BadRequest):
        await search.find(broker, "anna", query)


@pytest.mark.timeout(60)
async def test_two_thousand_chats_of_twenty_turns_are_searched_within_a_second_or_so(broker):
    """One second on a free core; the limit leaves room for what else the machine does."""
    words = "the river runs past an old mill and nobody remembers why it was built there " * 8
    messages = {}
    for i in range(40):
        text = words if i % 2 else "and then what happened?"
        messages[str(i)] = {"role": ("user", "assistant")[i % 2], "parent": str(i - 1) if i else "", "created": i, "parts": [{"kind": "text", "text": text}]}  # fmt: skip
    last = messages | {"39": messages["39"] | {"parts": [{"kind": "text", "text": "a Nadel in the hay"}]}}
    await store(broker, "anna", [Imported("t", i, i, "39", messages if i else last) for i in range(2000)])
    start, before = time.process_time(), ""
    while not (call := await search.find(broker, "anna", "nadel", before)).results:
        before = call.after
    assert time.process_time() - start < 1.5
