"""A better title than the first words: the model that gave the first answer is asked for one, behind everybody else.

Nobody waits for it, and nothing happens when it fails: the first words stay. What a model says is taken only when it
looks like a title. A title that the user wrote is never replaced.
"""

import re

from broker import chat, conversations, registry, shelf
from broker.connection import Broker
from broker.conversations import TITLE_CHARACTERS, StoredMessage
from broker.messages import ChatRequest, Message, Sampling

CLIPPED = 1500  # characters of the question, and of the answer, that the model reads again
MOST_TOKENS = 40
TOO_LONG = 2 * TITLE_CHARACTERS  # a line of so many characters is no title, but the beginning of an answer
ASKED = "Give this conversation a title of two to six words, in its language. Write the title only."
ASKED_IN_CHINESE = "請用這段對話的語言，給它一個十個字以內的標題。只寫標題。"
CHINESE = re.compile(r"[\u4e00-\u9fff]")
LABEL = re.compile(r"^(title|標題|标题)\s*[:：]\s*", re.I)
WRAPPING = "\"'`*_#“”‘’「」『』《》〈〉 \t"


async def suggest(broker: Broker, conversation_id: str, owner: str, model: str) -> str:
    """Ask for a title and keep it; gives it, or "" if there is none to keep.

    Raises:
        FleetError: the conversation is gone, or the model gave no answer.
    """
    conversation, messages = await conversations.load(broker, conversation_id, owner)
    path = conversations.path(messages, conversation.leaf)
    card = await registry.find(broker, model)
    if conversation.titled or card.rank or not _answered(path):  # those in the box cannot name anything
        return ""
    question, answer = path[0].text, path[1].text
    asked = ASKED_IN_CHINESE if CHINESE.search(question) else ASKED
    said = Message("user", question[:CLIPPED]), Message("assistant", answer[:CLIPPED]), Message("user", asked)
    sampling = Sampling(temperature=0.3, max_tokens=MOST_TOKENS)
    request = ChatRequest(model, said, sampling, template_kwargs={"enable_thinking": False})
    title = clean((await chat.answer(broker, request, low_priority=True)).text)
    if title and await shelf.propose_title(broker, conversation_id, owner, title):
        return title
    return ""


def clean(text: str) -> str:
    """The title in what a model has said: one line without quotes and marks; "" when there is none."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = LABEL.sub("", line.strip(WRAPPING)).strip(WRAPPING + ".。")
    if "<" in line or len(line) > TOO_LONG or not any(character.isalnum() for character in line):
        return ""
    return conversations.title_of(line)


def _answered(path: list[StoredMessage]) -> bool:
    return len(path) == 2 and path[1].role == "assistant" and path[1].error is None and bool(path[1].text.strip())
