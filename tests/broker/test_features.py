import time

import pytest

from broker import features
from broker.features import CATEGORIES, describe

SIZE = 1_000_000
HOSTILE = [
    " ", "\n", "\t\n", "*", "**a ", "_", "`", "```\n", "```\n~~~\n", "#", "- ", "1", "a", "as ", "I am ", "I am a a a ", "claude ", "as as as as claude ",
    "as,,,,claude", "我是claude", "write ", "寫", "SELECT ", "from a.a ", "\n import", "I'm sorry ", "xyz ", "def a", "const a", "我是一個", "\u0130am gpt ",
]  # fmt: skip


def categories(*prompts: str, answer: str = "Yes.") -> set[str]:
    return set(describe([(prompt, answer, answer) for prompt in prompts]).categories)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("Write a Python function that sorts a list of names.", {"coding", "en"}),
        ("What does this do?\n```\nmov eax, 1\n```", {"coding", "en"}),
        ("幫我寫一個程式，讀取檔案後排序。", {"coding", "zh"}),
        ("The python bit the man and swam over the Java Sea.", {"coding", "en"}),  # a rule, not a mind
        ("Solve for x: 3x + 4 = 19, and show each step.", {"math", "en"}),
        ("How much is 12 * 7 of these, if you please?", {"math", "en"}),
        ("請求解這個方程，並說明理由。", {"math", "zh"}),
        ("What is \\frac{1}{2} of the whole?", {"math", "en"}),
        ("We met on 2024-05-06 in the park of Berlin, or 1/2 an hour later.", {"en"}),
        ("Write me a short poem about the sea in the rain.", {"creative", "en"}),
        ("寫一首關於雨的詩", {"creative", "zh"}),
        ("今日は天気がいいですね。散歩に行きましょう", {"ja"}),
        ("오늘 날씨가 정말 좋네요 산책하러 가요", {"ko"}),
        ("Как дела? Расскажи мне о погоде в городе.", {"ru"}),
        ("Як справи? Розкажи мені про погоду в її місті.", set()),
        ("Wie ist das Wetter in der Stadt, und was soll ich machen?", {"de"}),
        ("Quelle est la météo dans les villes du sud, et que faire ?", {"fr"}),
        ("¿Cómo está el tiempo en las ciudades del sur?", {"es"}),
        ("Como está o tempo nas cidades do sul, e o que você faz?", {"pt"}),
        ("Che tempo fa nelle città del sud, e cosa mi consigli?", {"it"}),
        ("請解釋 Kubernetes 的 pod 是什麼東西呢", {"coding", "zh"}),
        ("12345 67890 !!! ??? --- ...", set()),
    ],
)
def test_a_prompts_words_put_it_into_categories(prompt, found):
    assert categories(prompt) - {"no-short", "no-refusal"} == found


def test_length_and_turns_and_short_prompts():
    assert "long" in categories("word " * 500)
    assert "long" in categories("字" * 500)
    assert "long" not in categories("word " * 499)
    assert "no-short" not in categories("one two three four")
    assert "no-short" in categories("one two three four five")
    assert "no-short" not in categories("one two three four five", "and why?")
    assert "multi-turn" not in categories("hello")
    assert "multi-turn" in categories("hello", "and then?")
    assert describe([]).categories == ("no-refusal",)


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        ("I’m sorry, but I can’t help with that.", True),
        ("I cannot assist with this request.", True),
        ("I'm unable to provide that.", True),
        ("抱歉，我無法協助這件事。", True),
        ("I'm sorry to hear that you are ill.", False),
        ("I cannot praise this book enough.", False),
        ("我無法想像更好的一天。", False),
    ],
)
def test_a_refusal_on_either_side(answer, refusal):
    for turn in ((answer, "Yes."), ("Yes.", answer)):
        assert ("no-refusal" not in describe([("Why?", *turn)]).categories) == refusal


def test_a_prompts_words_are_the_users_alone():
    assert categories("Hello there, how are you?", answer="```python\nprint(1)\n```") == {
        "en",
        "no-short",
        "no-refusal",
    }


MARKDOWN = """# Title
Some **bold** and __more__ text, 2 * 3 * 4.

- one
  * two
1. three
2) four
## Part

```python
# no header
- no item
**no bold**
~~~
```
###no header
~~~
# unclosed: to the end
- no
"""


def test_style_counts_markdown_outside_code_blocks():
    assert features.style([MARKDOWN])[1:] == (2, 4, 2)
    assert features.style([MARKDOWN, "# more\n**x**"])[1:] == (3, 4, 3)
    assert features.style(["```", "# header"])[1:] == (1, 0, 0)
    assert features.style(["````\n# a\n```\n# b\n````\n# c"])[1:] == (1, 0, 0)
    assert features.style([])[:] == (0, 0, 0, 0)


def test_length_counts_words_and_chinese_characters():
    assert features.words("two words，和中文 42") == 6
    found = describe([("x", "one two", "三個字 four"), ("y", "three", "")])
    assert (found.style_a[0], found.style_b[0]) == (3, 4)


def test_the_table_of_rules_names_what_is_found_and_each_once():
    names = [one.name for one in CATEGORIES]
    assert len(set(names)) == len(names)
    assert set(features.PATTERNS) | set(features.COMMON) <= set(names)
    assert not any(set(" *") & set(name) for name in names)  # a vote's are separated by spaces
    said = describe([("Write a Python function and a poem, 3 * 4?", "I am ChatGPT", "```\n")]).categories
    assert list(said) == [name for name in names if name in said]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_takes_time_by_its_length_only(piece):
    def seconds(size: int) -> float:
        text = piece * (size // len(piece.encode()))
        taken = []
        for turn in ((text, "", ""), ("", text, "")):
            begun = time.process_time()
            describe([turn], ["lmsys/vicuna-7b"])
            taken.append(time.process_time() - begun)
        return max(taken)

    assert min(seconds(SIZE) for _ in range(3)) < 0.3  # under 0.1 on a machine with nothing else to do
