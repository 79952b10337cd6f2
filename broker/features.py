"""What a vote keeps of its texts: categories by written rules, counts of style, and whether an answer says who it is.

Comes in: prompts and both sides' answers, turn by turn. Goes out: what `broker.votes.Vote` has fields for, so that ratings
never need the texts. `CATEGORIES` is the table that the leaderboard's page shows: each rule in one sentence, and below it
the function that decides it. Pure, and linear in the length of its texts: what people write may be made to be slow.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from broker.leaks import says_who
from broker.votes import Style

LONG = 500  # words of a prompt, as FastChat's long_user
SHORT = 5
LOOKED_AT = 20_000  # characters of the prompts, together, whose words are read
SHARE = 0.5  # of a text's letters that its language's script has


@dataclass(frozen=True, slots=True)
class Features:
    """Of one battle."""

    categories: tuple[str, ...]
    style_a: Style
    style_b: Style
    leak: bool


@dataclass(frozen=True, slots=True)
class Category:
    """Which battles belong together. Title and rule are for people, and translated in the web app's catalogues."""

    name: str
    title: str
    rule: str


CATEGORIES = (
    Category("coding", "Coding", "A prompt has a code block, a line of program text, or names a programming language or a task of programming."),
    Category("math", "Math", "A prompt has LaTeX, an arithmetic expression, or words of mathematics such as equation, integral or probability."),
    Category("creative", "Creative writing", "A prompt asks for a story, a poem, a song, a joke, a script or the like."),
    Category("long", "Long prompts", "A prompt has 500 words or more. A Chinese or Japanese character counts as a word."),
    Category("multi-turn", "Several turns", "The round has two turns or more."),
    Category("no-short", "No short prompts", "No prompt has fewer than 5 words."),
    Category("no-refusal", "No refusals", "No answer refuses, as by: I’m sorry, but I can’t help with that."),
    Category("en", "English", "Half of the prompts’ letters or more are Latin, and of the commonest words of six languages most are English."),
    Category("zh", "Chinese", "Of the prompts’ letters, with a Chinese character counted twice, half or more are Chinese, and there is no kana."),
    Category("ja", "Japanese", "As for Chinese, with at least one kana among ten Chinese or Japanese characters."),
    Category("ko", "Korean", "Half of the prompts’ letters or more are Hangul."),
    Category("ru", "Russian", "Half of the prompts’ letters or more are Cyrillic, and all of them belong to the Russian alphabet."),
    Category("de", "German", "As for English, with German words."),
    Category("fr", "French", "As for English, with French words."),
    Category("es", "Spanish", "As for English, with Spanish words."),
    Category("pt", "Portuguese", "As for English, with Portuguese words."),
    Category("it", "Italian", "As for English, with Italian words."),
)  # fmt: skip

JUDGED = (
    Category("hard", "Hard prompts", "A judge model says that the prompt needs several steps or much knowledge and has one right kind of answer."),
    Category("instruction", "Following instructions", "A judge model says that the prompt sets several rules that the answer has to keep."),
)  # fmt: skip
"""Categories that no written rule decides, see `workers.labels`."""

LEAK = "An answer says who it is: a sentence in the first person names a model or its maker."


def describe(turns: Sequence[tuple[str, str, str]], names: Iterable[str] = ()) -> Features:
    """The features of a battle's turns, each (prompt, answer of a, answer of b).

    Args:
        names: what the two models are called, which they might say.
    """
    prompts, *sides = (list(map(itemgetter(i), turns)) for i in range(3))
    answers, names = [*sides[0], *sides[1]], list(names)
    asked = "\n".join(prompts)[:LOOKED_AT]
    found = {name for name, pattern in PATTERNS.items() if pattern.search(asked)}
    if any(words(prompt) >= LONG for prompt in prompts):
        found.add("long")
    if prompts and min(map(words, prompts)) >= SHORT:
        found.add("no-short")
    if len(turns) > 1:
        found.add("multi-turn")
    if not any(map(refuses, answers)):
        found.add("no-refusal")
    found.add(language(asked))
    categories = tuple(one.name for one in CATEGORIES if one.name in found)
    return Features(categories, style(sides[0]), style(sides[1]), any(says_who(answer, names) for answer in answers))


IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
IDEOGRAPH = re.compile(f"[{IDEOGRAPHS}]+")


def words(text: str) -> int:
    """How many words: what stands between spaces, and each Chinese or Japanese character."""
    runs = IDEOGRAPH.findall(text)
    return sum(map(len, runs)) + len((IDEOGRAPH.sub(" ", text) if runs else text).split())


HEADER = re.compile(r"^ {0,3}#{1,6}[ \t]", re.MULTILINE)
ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]", re.MULTILINE)
BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})(.*)", re.MULTILINE)


def style(answers: Iterable[str]) -> Style:
    """Counts over all answers of one side. Of Markdown in code blocks nothing counts but its words."""
    length = headers = lists = bold = 0
    for text in answers:
        prose = _prose(text)
        length += words(text)
        headers, lists, bold = (
            count + len(mark.findall(prose)) for count, mark in ((headers, HEADER), (lists, ITEM), (bold, BOLD))
        )
    return length, headers, lists, bold


def _prose(text: str) -> str:
    """The text without its code blocks; one ends at a fence like its first one, or with the text."""
    parts, start, fence = [], 0, ""
    for mark in FENCE.finditer(text):
        if not fence:
            parts.append(text[start : mark.start()])
            fence = mark[1]
        elif mark[1].startswith(fence) and not mark[2].strip():
            start, fence = mark.end(), ""
    return "".join(parts if fence else [*parts, text[start:]])


COMMON = {
    "en": "the of and to is in you that it for what how are with can write please this my i",
    "de": "der die und ist das nicht ein eine ich zu den von mit wie für auf was bitte sie mir",
    "fr": "le la les et est des un une je en que pour dans qui du pas comment avec vous sur",
    "es": "el la los y es de que en un una por para con cómo qué se las del una mi",
    "pt": "o os e é de que em um uma para com não como do da no na por eu você",
    "it": "il lo gli e è di che in un una per con non come del della sono mi cosa nel",
}
"""The commonest words of each language; a word that two of them have counts for both."""

LANGUAGE_OF = {
    word: [tag for tag, text in COMMON.items() if word in text.split()]
    for text in COMMON.values()
    for word in text.split()
}
SCRIPTS = {
    "latin": re.compile(r"[A-Za-zÀ-ɏ]+"),
    "han": re.compile(r"[\u3400-\u9fff\uf900-\ufaff]+"),
    "kana": re.compile(r"[\u3041-\u30fa]+"),
    "hangul": re.compile(r"[\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f]+"),
    "cyrillic": re.compile(r"[\u0400-\u04ff]+"),
}
NOT_RUSSIAN = re.compile(r"[^а-яёА-ЯЁ]")


def language(text: str) -> str:
    """Its language's tag; "" if it is none of ours, or nothing tells."""
    text = text[:LOOKED_AT]
    runs = {name: script.findall(text) for name, script in SCRIPTS.items()}
    count = {name: sum(map(len, found)) for name, found in runs.items()}
    letters, east = sum(map(str.isalpha, text)), count["han"] + count["kana"]
    least = SHARE * letters or 1
    if east and 2 * east >= SHARE * (letters + east):
        kana = count["kana"] / east
        return "ja" if kana >= 0.1 else "zh" if not kana else ""
    if count["hangul"] >= least:
        return "ko"
    if count["cyrillic"] >= least:
        return "" if any(map(NOT_RUSSIAN.search, runs["cyrillic"])) else "ru"
    return _latin(runs["latin"]) if count["latin"] >= least else ""


def _latin(said: Sequence[str]) -> str:
    score = dict.fromkeys(COMMON, 0)
    for word in said:
        for tag in LANGUAGE_OF.get(word.lower(), ()):
            score[tag] += 1
    best = max(score, key=score.__getitem__)
    return best if score[best] else ""


CODE = re.compile(
    r"""^[ ]{0,3}(?:```|~~~)
    | ^[ \t]*(?:def|class)[ ]\w+[(:] | ^[ \t]*(?:from[ ][\w.]+[ ])?import[ ][\w.{] | ^[ \t]*\#include\b
    | \b(?:function|fn|func)[ ]\w+\( | \b(?:const|let|var)[ ]\w+[ ]?= | \b(?:console\.log|printf|println!?|print)\(
    | \bpublic[ ](?:static|class|void)\b | \bSELECT\b[^;\n]{1,200}\bFROM\b | </?(?:div|html|body|script|span|table)\b
    | \b(?:python|javascript|typescript|java|kotlin|golang|c\+\+|c\#|php|html|css|sql|regexp?|bash|numpy|pandas|pytorch
        |react|django|node\.js|dockerfile|kubernetes|leetcode)(?![\w+#])
    | \b(?:in|using|with)[ ](?:rust|swift|ruby|go|perl|haskell|scala)\b
    | \b(?:source[ ]code|code[ ]snippet|pseudo-?code|this[ ]code|my[ ]code|the[ ]code|programming|traceback|stack[ ]trace|segfault
        |compiler|debug(?:ging)?|refactor|unit[ ]tests?|algorithm|shell[ ]script|rest[ ]api|(?:write|implement)[ ]an?[ ](?:function|program|script|class))\b
    | 程式|代碼|代码|編程|编程|函式|演算法|算法|正則表達式|正则表达式|數據庫查詢|数据库查询|腳本|脚本|報錯|报错|除錯""",
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
MATH = re.compile(
    r"""\\(?:frac|sum|int|sqrt|begin\{|lim|cdot|times|leq|geq|infty|mathbb|alpha|beta|theta|pi\b) | \\[(\[]
    | \d[ ]?[*×÷^][ ]?\(?\d | \d[ ]?\+[ ]?\(?\d | \d[ ][-/][ ]\d | \b[a-z]\^\d | \b\d{0,6}[xyz][ ]?[+=-][ ]?\d | [∑∫√∂≤≥≠π∞]
    | \b(?:equations?|integrals?[ ]of|derivatives?|differentiat(?:e|ion)|polynomials?|matri(?:x|ces)|eigenvalues?|theorems?|lemma|logarithms?
        |probability|standard[ ]deviation|algebra(?:ic)?|geometry|trigonometr(?:y|ic)|calculus|arithmetic|prime[ ]numbers?|fractions?
        |square[ ]root|prove[ ]that|solve[ ]for|calculate|multiplied[ ]by|divided[ ]by|hypotenuse|perimeter|percent(?:age)?[ ]of)\b
    | 方程|積分|积分|微分|導數|导数|機率|概率|矩陣|矩阵|行列式|三角形|求解|求證|求证|定理|質數|质数|素数|平方根|計算|计算|幾何|几何|代數|代数|數學|数学
    | [加減减乘除]以?[零一二三四五六七八九十百千\d]""",
    re.VERBOSE | re.IGNORECASE,
)
CREATIVE = re.compile(
    r"""\b(?:write|compose|create|tell|make[ ]up|continue|give[ ]me|generate)\b[^.?!\n]{0,60}
        \b(?:stor(?:y|ies)|poems?|haikus?|limericks?|sonnets?|songs?|lyrics|jokes?|novels?|screenplays?|dialogues?|fairy[ ]tales?|raps?|slogans?|monologues?|fan[ -]?fiction)\b
    | (?:寫|写|創作|创作|編|编|講|讲|說|说|作|來|来)[^。？！\n]{0,20}(?:故事|詩|诗|歌詞|歌词|小說|小说|笑話|笑话|劇本|剧本|童話|童话|對聯|对联|散文|標語|标语)""",
    re.VERBOSE | re.IGNORECASE,
)
REFUSAL = re.compile(
    r"""\bI(?:['’]m|[ ]am)[ ](?:very[ ]|really[ ]|so[ ])?(?:sorry|afraid)\b[^.\n]{0,40}\b(?:can(?:['’]t|not|[ ]not)|(?:not|un)[ ]?able|won['’]t)\b
    | \bI[ ](?:can(?:['’]t|not|[ ]not)|won['’]t|will[ ]not)[ ](?:help|assist|comply|fulfil|provide|do[ ]that|support|engage|create|write[ ]that|answer[ ]that|discuss)
    | \bI(?:['’]m|[ ]am)[ ](?:unable|not[ ]able)[ ]to[ ](?:help|assist|comply|fulfil|provide|create|answer|discuss)
    | \bI[ ]must[ ](?:decline|refuse) | (?:抱歉|對不起|对不起|很遺憾|很遗憾)[^。\n]{0,12}(?:無法|无法|不能|沒辦法|没办法)
    | 我(?:無法|无法|不能|不會|不会)(?:協助|协助|幫助|帮助|提供|回答|滿足|满足|討論|讨论)""",
    re.VERBOSE | re.IGNORECASE,
)


def refuses(answer: str) -> bool:
    """Whether an answer begins as one that refuses."""
    return REFUSAL.search(answer, 0, 600) is not None


PATTERNS = {"coding": CODE, "math": MATH, "creative": CREATIVE}
"""What is looked for in the prompts."""
