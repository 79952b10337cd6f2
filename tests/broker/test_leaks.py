import pytest

from broker.features import describe
from broker.leaks import says_who


@pytest.mark.parametrize(
    "answer",
    [
        "I am ChatGPT",
        "Hello! I'm Claude, an AI assistant created by Anthropic.",
        "I’m **Claude**, here to help.",
        "I am a large language model, trained by Google.",
        "As an AI language model developed by OpenAI, I cannot feel.",
        "As ChatGPT, I have no body.",
        "My name is Qwen2.5.",
        "I was created by the team at Anthropic.",
        "I am Google's language model.",
        "I'm an OpenAI model.",
        "I am based on the GPT-4 architecture.",
        "You are talking to gpt-4o now.",
        "I am not a person, I am Gemini.",
        "我是 ChatGPT",
        "我是由 OpenAI 開發的人工智慧助理。",
        "我是一个由谷歌训练的大型语言模型。",
        "您好，我是通義千問，由阿里雲開發。",
        "我叫文心一言",
        "私はOpenAIによって開発されました",
        "저는 ChatGPT입니다",
        "x " * 40_000 + "By the way: I am ChatGPT. " + "y " * 40_000,
        "İ" * 300 + " I am ChatGPT",  # its lower case is longer
    ],
)
def test_an_answer_says_who_it_is(answer):
    assert says_who(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Google is a company, and OpenAI another one.",
        "Hold the bird in the palm of your hand, said the bard.",
        "I am sure that Google made it.",
        "I'm a llama in the Andes, and a Gemini by birth.",
        "I'm not sure what OpenAI meant by ChatGPT.",
        "I am happy to help with the ChatGPT API.",
        "As Google says, maps are useful.",
        "I am an assistant. Claude Monet was a painter.",
        "I was bitten by a llama",
        "I'm an AI assistant.",
        "我是一名學生，喜歡用谷歌。",
        "我被百度騙了",
        "我是百度的員工",
        "I am a bot for the mistralian wind.",
        "",
    ],
)
def test_a_name_alone_is_no_leak(answer):
    assert not says_who(answer)


def test_the_battles_own_models_count_by_their_whole_names():
    names = ["lmsys/tiny-stories-33M", "pocket"]
    assert says_who("I am tiny-stories-33m.", names)
    assert says_who("I'm Tiny Stories 33M", names)
    assert says_who("我是pocket，您好", names)
    assert not says_who("I am tiny.", names)
    assert not says_who("I am pocketing the money.", names)
    assert not says_who("I am Pocket.")
    assert not says_who("I am here (c++).", ["", "c++[("])


def test_only_answers_leak_and_either_does():
    assert not describe([("I am ChatGPT, who are you?", "A friend.", "Nobody.")]).leak
    assert describe([("Who?", "A friend.", "x"), ("Really?", "Yes.", "I am ChatGPT.")]).leak
    assert describe([("Who?", "I am left-7b.", "x")], ["left-7b", "right"]).leak
