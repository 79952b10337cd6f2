"""The dialogues that pocket learns from: reads the files in dialogues/ and puts endless different dialogues together.

In comes a random number generator, out goes one dialogue, a list of (role, text). Nothing here knows torch or tokens.

A file in dialogues/ holds sections; a section is a small dialogue with alternatives:

    @more = tell me more|go on      a list; <more> stands for one of them
    == about                        a section; English and Chinese ones of one name answer the same thing
    - what {is|was} FleetChat       what a person may say: one of these lines, one alternative of every brace
    > FleetChat is ...              the answer: one of these lines
    - <more>                        the next turn, which may be left away

`story` and `joke` answer with a member of their set (`story.fox`, ...), and `story.again` goes on to the next one.
`unknown.*` follows a question that pocket cannot answer, `any.*` follows whatever was answered, `system` holds system
prompts, `<noise>` is a word that does not exist and `<big>` a number above 20. sums.toml explains itself.
"""

import functools
import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
LARGEST = 20  # sums are learned up to here
_NUMBERS = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty",
    "zh": "零 一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十",
}
NUMBERS = {language: words.split() for language, words in _NUMBERS.items()}
Message = tuple[str, str]  # role, text

BARE = 0.02  # of the small dialogues are a greeting and nothing else: `hello.bare`
SMALL_TALK = frozenset({"hello", "how-are-you", "thanks", "bye", "who-are-you", "abilities", "praise", "okay", "likes"})

_CHOICE = re.compile(r"\{([^{}]*)\}|<([a-z-]+)>")
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[\u3400-\u9fff]")
_DIGITS = frozenset("零一二兩三四五六七八九十")
_SYLLABLES = "ba ko ri zu mel tan vor gli pex sha nu dro quin fe lop mar sti wex yol cra ben tho il os an ek ur"


@dataclass(slots=True)
class Turn:
    """What a person may say, and what pocket may answer: templates both."""

    asks: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Phrases:
    """All that dialogues/ says in one language."""

    language: str
    lists: dict[str, list[str]] = field(default_factory=dict)
    sections: dict[str, list[Turn]] = field(default_factory=dict)
    sums: dict[str, list[str]] = field(default_factory=dict)

    def members(self, name: str) -> list[str]:
        """The sections of a set, such as story.fox of story, in the order of the file."""
        return [
            section for section in self.sections if section.startswith(f"{name}.") and not section.endswith(".again")
        ]

    def fill(self, rng: random.Random, template: str) -> str:
        """One text that a template stands for."""

        def pick(match: re.Match[str]) -> str:
            alternatives, name = match[1], match[2]
            if alternatives is not None:
                return rng.choice(str(alternatives).split("|"))
            if name == "noise":
                return _noise(rng, self.language)
            if name == "big":
                return str(rng.choice((rng.randint(21, 99), rng.randint(21, 999), rng.randint(100, 9999))))
            return rng.choice(self.lists[name])

        while _CHOICE.search(template):
            template = _CHOICE.sub(pick, template)
        return template

    def answer(self, rng: random.Random, section: str, turn: int = 0) -> str:
        """One of the answers of a section."""
        return self.fill(rng, rng.choice(self.sections[section][turn].answers))

    def ask(self, rng: random.Random, section: str, turn: int = 0) -> str:
        """One of the ways of asking for a section."""
        return self.fill(rng, rng.choice(self.sections[section][turn].asks))


@functools.cache
def phrases(language: str) -> Phrases:
    """Everything in dialogues/ in one language."""
    found = Phrases(language)
    for path in (HERE / "dialogues" / f"{language}.txt", HERE / "dialogues" / f"unknown_{language}.txt"):
        _read(path, found)
    found.sums = _sums(language)
    return found


def dialogue(rng: random.Random) -> list[Message]:
    """One dialogue of one to twenty small ones, as a person might lead it."""
    language = rng.choice(LANGUAGES)
    messages: list[Message] = []
    if rng.random() < 0.2:
        messages.append(("system", rng.choice(phrases(language).sections["system"][0].asks)))
    parts = rng.choices((1, 2, 3, rng.randint(4, 6), rng.randint(8, 20)), (62, 19, 10, 7, 2))[0]
    for _ in range(parts):
        if rng.random() < 0.05:
            language = rng.choice(LANGUAGES)
        messages.extend(_part(rng, phrases(language)))
    return messages


def dialogues(seed: int) -> Iterator[list[Message]]:
    """Endless dialogues, the same ones for the same seed."""
    rng = random.Random(seed)
    while True:
        yield dialogue(rng)


def runs(text: str, *, masked: bool = False, length: int = 4) -> set[tuple[str, ...]]:
    """All runs of four words in a text: a word is a Latin word or number, lower-cased, or one CJK character.

    With `masked`, every number (in digits, English or Chinese) is the same word, so that runs tell templates apart.
    """
    words = _WORD.findall(text.lower().replace("’", "'"))
    if masked:
        shown: list[str] = []
        for word in words:
            number = word.isdigit() or word in _DIGITS or word in NUMBERS["en"]
            if not (number and shown[-1:] == ["#"] and word in _DIGITS):  # 十五 is one number
                shown.append("#" if number else word)
        words = shown
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def _read(path: Path, found: Phrases) -> None:
    """Adds the lists and sections of one file."""
    turns: list[Turn] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        mark, _, text = line.partition(" ")
        if mark == "==":
            turns = found.sections[text] = [Turn()]
        elif mark == "-":
            if turns[-1].answers:
                turns.append(Turn())
            turns[-1].asks.append(text)
        elif mark == ">":
            turns[-1].answers.append(text)
        elif mark.startswith("@"):
            found.lists[mark[1:]] = text.removeprefix("= ").split("|")
        elif line and mark != "#":
            raise ValueError(f"{path}:{number}: {line!r}")


def _sums(language: str) -> dict[str, list[str]]:
    """The templates for sums in one language; single strings become lists of one."""
    table = tomllib.loads((HERE / "dialogues" / "sums.toml").read_text("utf-8"))[language]
    return {name: [value] if isinstance(value, str) else value for name, value in table.items()}


def _part(rng: random.Random, say: Phrases) -> list[Message]:
    """One small dialogue: a sum, an unanswerable question, stories, or a section of the files, with what may follow."""
    if rng.random() < BARE:
        return [("user", say.ask(rng, "hello.bare")), ("assistant", say.answer(rng, "hello"))]
    kind = rng.choices(("section", "unknown", "sum", "story", "joke"), (52, 15, 26, 4, 3))[0]
    if kind == "sum":
        return _sum(rng, say)
    if kind in ("story", "joke"):
        return _set(rng, say, kind)
    name = "unknown" if kind == "unknown" else _section(rng, say)
    messages = _turn(rng, say, say.ask(rng, name), say.answer(rng, name))
    for turn in range(1, len(say.sections[name])):
        if rng.random() > 0.25:
            break
        messages += _turn(rng, say, say.ask(rng, name, turn), say.answer(rng, name, turn))
    return messages + _follow(rng, say, name, len(messages) // 2)


def _section(rng: random.Random, say: Phrases) -> str:
    """A section that can begin a dialogue; those with more ways of asking come more often, and so does small talk."""
    names, weights = _openings(say.language)
    return rng.choices(names, weights)[0]


@functools.cache
def _openings(language: str) -> tuple[list[str], list[float]]:
    say = phrases(language)
    special = {"unknown", "system", "story", "joke"}
    names = [name for name in say.sections if name not in special and "." not in name]
    return names, [len(say.sections[name][0].asks) ** 0.5 * (1.5 if name in SMALL_TALK else 1.0) for name in names]


def _follow(rng: random.Random, say: Phrases, name: str, turns: int) -> list[Message]:
    """What may come after any answer: why, more, the other language, again."""
    chance = rng.random()
    if name == "unknown" and chance < 0.24:
        follow = "unknown.why" if chance < 0.16 else "unknown.more"
        return _turn(rng, say, say.ask(rng, follow), say.answer(rng, follow))
    last = len(say.sections[name]) == turns  # after its last turn there is nothing more to tell
    if name != "unknown" and last and chance < 0.06:
        return _turn(rng, say, say.ask(rng, "any.more"), say.answer(rng, "any.more"))
    if turns == 1 and 0.3 < chance < 0.38:
        other = phrases("zh" if say.language == "en" else "en")
        return _turn(rng, say, say.ask(rng, "any.translate"), other.answer(rng, name))
    return []


def _set(rng: random.Random, say: Phrases, kind: str) -> list[Message]:
    """Stories or jokes: any one or the one that was asked for, then the next ones."""
    members = say.members(kind)
    place = rng.randrange(len(members))
    named = bool(say.sections[members[place]][0].asks) and rng.random() < 0.6
    messages = _turn(rng, say, say.ask(rng, members[place] if named else kind), say.answer(rng, members[place]))
    while rng.random() < 0.35:
        place = (place + 1) % len(members)
        messages += _turn(rng, say, say.ask(rng, f"{kind}.again"), say.answer(rng, members[place]))
    return messages


def _sum(rng: random.Random, say: Phrases) -> list[Message]:
    """A sum, and perhaps others that go on from its result."""
    adding = rng.random() < 0.55
    first, second, result = _numbers(rng, adding)
    messages: list[Message] = []
    ask = rng.choice(say.sums["plus" if adding else "minus"])
    while True:
        shown = ask.replace("$a", _number(rng, say, first)).replace("$b", _number(rng, say, second))
        shown = say.fill(rng, shown.replace("$n", rng.choice(say.sums["nouns"])))
        values = {"$a": str(first), "$b": str(second), "$c": str(result), "$op": "+" if adding else "-"}
        if not 0 <= result <= LARGEST:
            return messages + _turn(rng, say, shown, say.answer(rng, "unknown"), sums=True)
        messages += _turn(rng, say, shown, _replace(say.sums["answer"][0], values), sums=True)
        if rng.random() < 0.06:
            ask = say.fill(rng, rng.choice(say.sums["why"]))
            return messages + _turn(rng, say, ask, _replace(say.sums["why_answer"][0], values))
        if rng.random() > 0.35:
            return messages
        adding = rng.random() < 0.5
        first, second = result, rng.randint(1, LARGEST - result) if adding and result < LARGEST else 0
        adding = second > 0
        if not adding:
            second = rng.randint(0, first)
        result = first + second if adding else first - second
        ask = rng.choice(say.sums["and_plus" if adding else "and_minus"])


def _numbers(rng: random.Random, adding: bool) -> tuple[int, int, int]:
    """Two numbers and their sum or difference: from 0 to 20, or now and then beyond, which pocket cannot do."""
    if rng.random() < 0.05:
        first, second = rng.randint(11, LARGEST), rng.randint(11, LARGEST)
        return (first, second, first + second) if adding else (first - 10, second, first - 10 - second)
    large = rng.randint(0, LARGEST)
    small = rng.randint(0, large)
    return (small, large - small, large) if adding else (large, small, large - small)


def _number(rng: random.Random, say: Phrases, value: int) -> str:
    """A number as a person writes it: mostly in digits."""
    if rng.random() < 0.7:
        return str(value)
    return "兩" if say.language == "zh" and value == 2 and rng.random() < 0.4 else NUMBERS[say.language][value]


def _replace(template: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(name, value)
    return template


def _turn(rng: random.Random, say: Phrases, ask: str, answer: str, *, sums: bool = False) -> list[Message]:
    """A question as people type it, and its answer."""
    worn = _worn(rng, say, ask, sums)
    return [("user", ask if _shares(worn) else worn), ("assistant", answer)]


def _shares(text: str) -> bool:
    """Whether chance has put together a run of words that a held-out question has: then the plain text is taken."""
    held = heldout_runs()
    return not held.isdisjoint(runs(text)) or not held.isdisjoint(runs(text, masked=True))


@functools.cache
def heldout_runs() -> frozenset[tuple[str, ...]]:
    """All runs of four words in the held-out questions, as they are and with numbers masked."""
    table = tomllib.loads((HERE / "heldout.toml").read_text("utf-8"))
    texts = [turn for question in table["question"] for turn in question["turns"]]
    return frozenset(run for text in texts for masked in (False, True) for run in runs(text, masked=masked))


def _worn(rng: random.Random, say: Phrases, text: str, sums: bool) -> str:
    """The text with the small differences between people: politeness, case, punctuation, missing words, typing errors."""
    if rng.random() < 0.2:
        before = rng.choice(say.lists["before"])
        text = before + (text[:1].lower() + text[1:] if say.language == "en" and text[:2] not in ("I ", "I'") else text)
    if rng.random() < 0.12 and not sums:
        text += rng.choice(say.lists["after"])
    if not sums and rng.random() < 0.12:
        text = _drop(rng, text, say.language)
    if say.language == "en" and rng.random() < 0.12:
        text = _typo(rng, text)
    if say.language == "zh" and rng.random() < 0.3:
        text = re.sub(r"(?<=[\u3400-\u9fff]) | (?=[\u3400-\u9fff])", "", text)
    case = rng.random()
    if say.language == "en" and case < 0.45:
        text = text[:1].upper() + text[1:]
    elif case < 0.75:
        text = text.lower()
    elif case < 0.77:
        text = text.upper()
    if text[-1:].isalnum():
        text += rng.choice(
            ("", "", "?", "?", ".", "!", " ?", "??") if say.language == "en" else ("", "", "", "?", "?", "。", "!")
        )
    if say.language == "zh" and rng.random() < 0.35:
        text = text.translate(str.maketrans(",?!:", ",?!:"))
    return text


def _drop(rng: random.Random, text: str, language: str) -> str:
    """Leaves out a word, or a character of a Chinese text, where enough remain."""
    pieces = text.split(" ") if language == "en" else list(text)
    if len(pieces) < 5:
        return text
    del pieces[rng.randrange(len(pieces))]
    return (" " if language == "en" else "").join(pieces)


def _typo(rng: random.Random, text: str) -> str:
    """Swaps, doubles or leaves out one letter."""
    places = [match.start() for match in re.finditer(r"[a-z](?=[a-z]{2})", text)]
    if not places:
        return text
    at = rng.choice(places)
    changed = rng.choice((text[at + 1] + text[at], text[at] * 2 + text[at + 1], text[at + 1]))
    return text[:at] + changed + text[at + 2 :]


def _noise(rng: random.Random, language: str) -> str:
    """A word that does not exist, so that unknown words lead to "I don't know"."""
    if language == "en":
        return "".join(rng.choices(_SYLLABLES.split(), k=rng.randint(2, 4)))
    return "".join(rng.choices(_characters(), k=rng.randint(2, 4)))


@functools.cache
def _characters() -> list[str]:
    """The Chinese characters of the dialogues, each once."""
    text = "".join(path.read_text("utf-8") for path in sorted((HERE / "dialogues").glob("*zh.txt")))
    return sorted(set(re.findall(r"[\u3400-\u9fff]", text)))
