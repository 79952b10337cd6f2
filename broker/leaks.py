"""Whether an answer says who it is, as "I am Claude, made by Anthropic" does; a vote on it is not a blind one.

A name alone says nothing: people ask about Google, have palms and llamas. It counts where a statement in the first
person leads up to it by words that do nothing but lead there. FastChat drops every battle in which a name occurs.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

MODELS = (
    "chatgpt", "chat gpt", "gpt", "claude", "gemini", "bard", "palm 2", "llama", "vicuna", "alpaca", "koala", "qwen", "mistral", "mixtral",
    "deepseek", "grok", "gemma", "kimi", "ernie", "chatglm", "glm", "falcon", "copilot", "bing", "command r", "nemotron", "smollm", "internlm",
    "baichuan", "hunyuan", "doubao", "minimax", "wizardlm", "zephyr", "openassistant", "stablelm", "phi", "yi-34b", "olmo", "granite",
    "通義千問", "通义千问", "千問", "千问", "文心一言", "混元", "豆包", "智譜清言", "智谱清言", "百川", "訊飛星火", "讯飞星火", "書生", "书生",
)  # fmt: skip
"""What models are called; a space may also be a hyphen or nothing, and a version may follow."""

MAKERS = (
    "openai", "open ai", "anthropic", "google", "deepmind", "meta", "facebook", "microsoft", "mistral", "alibaba", "aliyun", "tencent", "baidu",
    "bytedance", "zhipu", "moonshot", "deepseek", "xai", "cohere", "nvidia", "hugging face", "lmsys", "stability", "databricks", "ibm", "amazon",
    "apple", "tsinghua", "谷歌", "微軟", "微软", "百度", "阿里巴巴", "阿里雲", "阿里云", "騰訊", "腾讯", "字節跳動", "字节跳动", "智譜", "智谱",
    "月之暗面", "深度求索", "華為", "华为", "科大訊飛", "科大讯飞", "清華", "清华",
)  # fmt: skip
"""Who makes them."""

LEADS = (
    "a", "actually", "advanced", "ai", "an", "and", "artificial intelligence", "as", "assistant", "based on", "bot", "called", "chatbot",
    "companion", "computer program", "conversational", "currently", "friendly", "from", "generative", "helpful", "in fact", "is", "just", "known",
    "language", "large", "llm", "machine", "member of", "model", "multimodal", "named", "one of", "open-source", "originally", "really", "simply",
    "system", "that", "the", "version of", "virtual", "was", "which", "who", "your",
)  # fmt: skip
"""Words that may stand between "I am" and a name."""

CHINESE_LEADS = (
    "一個", "一个", "一名", "一款", "一種", "一种", "名為", "名为", "名叫", "叫做", "叫作", "叫", "基於", "基于", "來自", "来自", "人工智慧", "人工智能", "AI", "大型",
    "大規模", "大规模", "大", "語言", "语言", "模型", "助手", "助理", "聊天", "機器人", "机器人", "智慧", "智能", "的", "您", "你", "，", "、", "是", "由", "被", "為", "为",
)  # fmt: skip

SAYS = r"(?:i am|i['’]?m|my name is|my name['’]s|call me|i was|i have been|i['’]ve been|(?:talking|speaking|chatting) (?:to|with)|as)"
CHINESE_SAYS = "我(?:就是|其實是|其实是|是|叫做|叫|係|由|被|的名字是|的名字叫|名叫|名為|名为)|作為|作为|(?:私|僕|わたし)は|(?:저는|나는)"
MADE = r"(?:made|created|developed|trained|built|designed|provided|released|powered|maintained|operated|fine-?tuned)"
THING = r"(?:ai|(?:large )?language model|model|assistant|chat ?bot|llm)"
TEAM = r"(?: the)?(?: (?:company|team|researchers|people|folks))?(?: at| of| from)?"
GAP = r"[\s,:;\"'*_`(–—-]{1,4}"
CHINESE_MADE = "開發|开发|訓練|训练|打造|研發|研发|創建|创建|創造|创造|推出|設計|设计|製作|制作|提供|によ"
CHINESE_THING = "模型|助手|助理|AI|機器人|机器人|人工智慧|人工智能"
CHINESE_GAP = r"[\s「『“\"*`]{0,2}"
NOBODY = r"(?!\s+(?:and|or|himself|herself|monet|shannon|debussy|users?|fans?)\b)"  # people are called so, too
FAR = 12  # words, at most, that lead to a name
BEFORE, AFTER = 160, 60  # characters around a name that are read
LOOKED_AT = 20_000  # characters of an answer, at most, that are read


def says_who(answer: str, names: Iterable[str] = ()) -> bool:
    """Whether a model, any or one of these names, says in this answer what it is called or who has made it."""
    forms = tuple(sorted({form for name in names if name for form in _forms(name)}))
    around = _around_names(answer, (*STEMS, *map(str.lower, forms)))
    return bool(around) and any(pattern.search(around) for pattern in _patterns(forms))


def _forms(name: str) -> set[str]:
    """A model's name as it might say it: whole, without its folder, and with spaces."""
    whole = {name, name.rpartition("/")[2]}
    return whole | {form.replace("-", " ").replace("_", " ") for form in whole}


def _around_names(answer: str, stems: Iterable[str]) -> str:
    """What stands around names: only there can an answer tell, and most have none."""
    answer = answer.replace("\u0130", "i")  # the one letter that lower() makes longer, so that places would move
    text = answer.lower()
    places: set[int] = set()
    for stem in stems:
        place = text.find(stem)
        while place >= 0 and len(places) < LOOKED_AT:
            places.add(place)
            place = text.find(stem, place + BEFORE)  # what is nearer lies in this one's surroundings
    parts, end, room = list[str](), 0, LOOKED_AT
    for place in sorted(places):
        start = max(end, place - BEFORE)
        parts += ["\n" * (start > end), answer[start : place + BEFORE + AFTER]]
        end = max(end, place + BEFORE + AFTER)
        room -= len(parts[-1])
        if room < 0:
            break
    return "".join(parts)


@lru_cache(maxsize=1024)
def _patterns(forms: Sequence[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """For languages with spaces between words, and for those without.

    No group gives back what it took (`+` behind a quantifier), so that texts made for it cannot make it slow.
    """
    called = "|".join((*map(_spaced, sorted(MODELS, key=len, reverse=True)), *map(re.escape, forms)))
    makers = "|".join(map(_spaced, sorted(MAKERS, key=len, reverse=True)))
    chinese = (
        rf"(?:{CHINESE_SAYS})(?:{CHINESE_GAP}(?:{'|'.join(CHINESE_LEADS)})){{0,{FAR}}}+{CHINESE_GAP}"
        rf"(?:(?:{called})(?![a-z])|(?:{makers})[^。！？\n我]{{0,8}}(?:{CHINESE_MADE}|的[^。！？\n]{{0,6}}(?:{CHINESE_THING})))"
    )
    called, makers = rf"(?:{called})(?:\d[\w.]{{0,20}})?+(?![\w'’])", rf"(?:{makers})(?: ?ai)?+(?!\w)"
    leads = rf"(?:{GAP}(?:{'|'.join(LEADS)})(?![\w'’])){{0,{FAR}}}+"
    english = (
        rf"\b{SAYS}{leads}"
        rf"(?:(?<!\ba){GAP}{called}{NOBODY}|{GAP}(?:{called}|{makers}(?:['’]s)?){GAP}{THING}\b"
        rf"|{GAP}{MADE}(?: and {MADE})?{GAP}(?:by|at){TEAM}{GAP}{makers})"
    )
    return re.compile(english, re.IGNORECASE), re.compile(chinese, re.IGNORECASE)


def _spaced(name: str) -> str:
    return re.escape(name).replace(r"\ ", "[ -]?")


STEMS = tuple({name.partition(" ")[0] for name in (*MODELS, *MAKERS)})
