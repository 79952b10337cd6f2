"""The message box in a real Chromium: files by button, drop and paste, and what cannot be sent."""

import re

import pytest
from playwright.async_api import expect

from broker import conversations, keys

pytestmark = pytest.mark.timeout(60)

DROP = """async ([type, files]) => {
  const data = new DataTransfer();
  for (const [name, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name));
  const target = type === "paste" ? document.getElementById("prompt") : document.body;
  const event = type === "paste"
    ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true})
    : new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true});
  target.dispatchEvent(event);
}"""


async def give(tab, how, **files):
    """Drop or paste files: name -> bytes."""
    await tab.evaluate(DROP, [how, [[name.replace("_", "."), list(content)] for name, content in files.items()]])


async def test_files_by_button_drop_and_paste_go_with_the_message(visitor, tab, broker, tmp_path):
    chips = tab.locator("#chips .chip")
    for name in ("one.py", "two.md"):
        (tmp_path / name).write_text(f"this is {name}\n")
    await tab.locator("#files").set_input_files([tmp_path / "one.py", tmp_path / "two.md"])
    await expect(chips).to_have_count(2)
    await give(tab, "dragover", three_txt=b"3")
    await expect(tab.locator("#drop")).to_be_visible()
    await give(tab, "drop", three_txt=b"3")
    await expect(tab.locator("#drop")).to_be_hidden()
    await give(tab, "paste", four_csv=b"4,4")
    await expect(chips).to_have_count(4)
    await expect(chips.first).to_contain_text("one.py")
    await expect(chips.first).to_contain_text("15 B")
    await tab.get_by_role("button", name="Remove two.md").click()
    await expect(chips).to_have_count(3)
    await visitor.ask("What is this?")
    await expect(visitor.answer).to_contain_text("What is this?")
    await expect(visitor.answer.locator("pre").first).to_contain_text("this is one.py")
    await expect(chips).to_have_count(0)
    shown = tab.locator(".turn.question .file")
    await expect(shown).to_have_count(3)
    await expect(shown.first.locator("pre")).to_be_hidden()
    await shown.first.locator("summary").click()
    await expect(shown.first.locator("pre")).to_have_text("this is one.py\n")
    conversation = tab.url.rpartition("/")[2]
    owner = (await broker.redis.hget(keys.conversation(conversation), "owner")).decode()
    _, messages = await conversations.load(broker, conversation, owner)
    kinds = [[part["kind"] for part in m.parts] for m in messages.values() if m.role == "user"]
    assert kinds == [["file", "file", "file", "text"]]
    await tab.reload()
    await expect(shown).to_have_count(3)


async def test_a_file_alone_is_a_message(visitor, tab):
    await give(tab, "drop", a_txt="語".encode())
    await expect(tab.locator("#send")).to_have_attribute("aria-disabled", "false")
    await tab.locator("#send").click()
    await expect(visitor.answer).to_contain_text("語")
    await expect(tab.locator("#heading")).to_have_text("a.txt")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x89PNG\x00\x01", "is no text"),
        ("這是".encode("big5"), "is no text"),
        (b"", "is empty"),
        (b"x" * 300_000, r"is too large: there is room for 256 KB"),
    ],
)
async def test_what_is_no_text_or_too_large_is_refused_with_a_sentence(visitor, tab, content, sentence):
    await give(tab, "drop", it_bin=content)
    await expect(tab.locator("#notice")).to_contain_text(re.compile(f"it.bin {sentence}"))
    await expect(tab.locator("#chips .chip")).to_have_count(0)


async def test_a_message_that_was_refused_can_be_edited_with_its_files(visitor, tab):
    await give(tab, "drop", big_txt=b"x" * 200_000)
    await expect(tab.locator("#chips .chip")).to_have_count(1)
    await visitor.ask("y" * 100_000)
    problem = tab.locator(".turn.answer .problem")
    await expect(problem).to_contain_text("FLEETCHAT_PROMPT_BYTES")
    await problem.get_by_role("button", name="Edit").click()
    await expect(tab.locator(".turn")).to_have_count(0)
    await expect(tab.locator("#chips .chip")).to_have_count(1)
    await tab.locator("#prompt").fill("short")
    await tab.get_by_role("button", name="Remove big.txt").click()
    await tab.locator("#prompt").press("Enter")
    await expect(visitor.answer).to_have_text("short")


async def test_a_message_sent_while_the_connection_is_away_is_answered_once(visitor, tab):
    await visitor.ask("first")
    await expect(visitor.answer).to_have_text("first")
    await tab.context.set_offline(True)
    await tab.evaluate("window.dispatchEvent(new Event('offline'))")
    tab.forgiven.append("ERR_INTERNET_DISCONNECTED")
    await visitor.ask("second")
    await expect(tab.locator("#connection")).to_be_visible()
    await tab.context.set_offline(False)
    await expect(visitor.answer).to_have_text("second", timeout=15_000)
    await tab.reload()
    await expect(tab.locator(".turn.question .question-text")).to_have_text(["first", "second"])
    await expect(tab.locator(".versions-shown:visible")).to_have_count(0)
