"""What is said on the screenshots: answers with everything that Markdown has, and a shelf of conversations, in two languages."""

import time
from typing import Any

from broker.imports import Imported

DAY_MS = 86_400_000

LEAGUE = [  # the best first
    "albatross-2-large", "large", "skua-70b-instruct", "coder", "petrel-mixture-8x7b", "gull-1.5-flash", "tern-14b", "pocket",
    "plover-7b-chat", "avocet-mini", "quick", "fulmar-3b", "sandpiper-1.1b-instruct-preview", "dunlin-500m",
]  # fmt: skip

QUESTION = "Why does one slow worker make everybody wait, and what helps?"

ANSWER = r"""Because work that has been **handed out** cannot be taken back. If a dispatcher gives every worker its own line, the people behind the slow one wait, although others stand idle. Let the workers *pull* from one line instead.[^pull]

How long people wait follows from Little’s law, $L = \lambda W$:

$$
W = \frac{L}{\lambda} = \frac{1}{\mu - \lambda}, \qquad \lambda < \mu
$$

| Arrangement | Mean wait | Slowest 1 % |
|:--|--:|--:|
| A line for each worker | 410 ms | 6.2 s |
| One line, workers pull | 95 ms | 0.7 s |
| One line, two more workers | 31 ms | 0.2 s |

A worker that pulls is a loop of a few lines:

```python
async def work(queue: Queue, places: int) -> None:
    free = asyncio.Semaphore(places)
    while True:
        await free.acquire()  # first a place, then a job
        job = await queue.take()
        asyncio.create_task(answer(job)).add_done_callback(lambda _: free.release())
```

What is left to do:

- [x] one line for each model
- [x] a lease, so that a dead worker’s jobs go back
- [ ] a third worker for the evenings

[^pull]: It is also why nothing has to be configured when a worker joins.
"""

DIAGRAM = """This is how a question travels:

```mermaid
graph LR
  Browser -->|asks| Web[Web app]
  Web -->|enqueues| Redis
  Redis -->|is pulled by| Worker
  Worker -->|frames| Redis
  Redis -->|relays| Web
  Web -->|shows| Browser
```

And this is ![the harbour in the morning](https://pictures.example/harbour.png) where it began.
"""

CODE = r'''Both count words; the second one never holds the whole file.

```python
from collections import Counter
from pathlib import Path


def count(path: Path) -> Counter[str]:
    """How often each word is in a file, read line by line."""
    words: Counter[str] = Counter()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            words.update(line.casefold().split())
    return words
```

The same in a shell, for a file that fits into the pipe: `tr -s '[:space:]' '\n' < book.txt | sort | uniq -c | sort -rn | head`.
'''

CHINESE_QUESTION = "為什麼一個慢的工作者會讓大家都在等？"

CHINESE = r"""因為已經**派出去**的工作收不回來。如果每個工作者各有一條隊伍，排在慢的那一個後面的人就只能等，即使別的工作者閒著。讓工作者自己從**同一條隊伍**領工作就好了。[^1]

等候時間可以用利特爾法則計算，$L = \lambda W$：

| 安排 | 平均等候 | 最慢的 1 % |
|:--|--:|--:|
| 每個工作者一條隊伍 | 410 毫秒 | 6.2 秒 |
| 同一條隊伍 | 95 毫秒 | 0.7 秒 |

```python
while True:
    await free.acquire()   # 先有空位，再領工作
    job = await queue.take()
```

- [x] 每個模型一條隊伍
- [ ] 晚上再加一個工作者

[^1]: 所以新的工作者加入時，什麼都不用設定。
"""

REASONING = """The user asks for the day of the week. I know that 1 January 2000 was a Saturday.

From there to 1 March 2000 there are 31 + 29 days, since 2000 is a leap year: 60 days, and 60 mod 7 = 4. Saturday plus four days is Wednesday.

Let me check it with another known day: 29 February 2000 was a Tuesday, so 1 March was a Wednesday. Good."""

THOUGHTFUL = "1 March 2000 was a **Wednesday**. The year 2000 had a 29 February, because it can be divided by 400."


def said(
    question: str, *parts: tuple[str, str] | dict[str, str], model: str = "large", **end: Any
) -> dict[str, dict[str, Any]]:
    """A question and its answer, as they are stored; a part is (kind, text) or a map."""
    at = int(time.time() * 1000)
    answer = [part if isinstance(part, dict) else dict(zip(("kind", "text"), part, strict=True)) for part in parts]
    figures = {
        "usage": {"prompt_tokens": 412, "completion_tokens": 318},
        "timings": {"waited": 0.02, "first": 0.31, "total": 6.8},
    }
    return {
        "q": {"role": "user", "parent": "", "created": at, "parts": [{"kind": "text", "text": question}]},
        "a": {"role": "assistant", "parent": "q", "created": at, "model": model, "reason": "stop", "parts": answer}
        | figures
        | end,
    }  # fmt: skip


def talk(title: str, messages: dict[str, dict[str, Any]], days: float = 0, leaf: str = "a", **more: Any) -> Imported:
    """A conversation that was last changed so many days ago."""
    at = int(time.time() * 1000) - int(days * DAY_MS)
    return Imported(title, at, at, leaf, messages, **more)


def long_talk(turns: int) -> Imported:
    """A conversation of many turns."""
    messages: dict[str, dict[str, Any]] = {}
    for i in range(turns):
        role = ("user", "assistant")[i % 2]
        text = (f"And what comes after {i // 2}?", f"After {i // 2} comes **{i // 2 + 1}**. " + CODE * (i % 10 == 9))[
            i % 2
        ]
        parent = f"m{i - 1}" if i else ""
        messages[f"m{i}"] = {"role": role, "parent": parent, "created": i, "model": "large", "parts": [{"kind": "text", "text": text}]}  # fmt: skip
    return talk("Counting, very far", messages, leaf=f"m{turns - 1}")


SHELF = (  # title, days ago, tags
    ("Why one slow worker makes everybody wait", 0, ("queues",)),
    ("旅行計畫：台南三天兩夜", 0.02, ("旅行",)),
    ("Count words without reading the whole file", 0.05, ("python",)),
    ("A letter to the landlord about the heating", 1, ("letters",)),
    ("Valkey or Redis: what differs?", 1.1, ("queues",)),
    ("把這段程式改寫成非同步", 3, ("python",)),
    ("Sourdough that does not rise in winter", 4, ("kitchen",)),
    ("Names for a sailing boat that are not puns, and two that are, since somebody will ask", 6, ()),
    ("The difference between a lease and a lock", 20, ("queues",)),
    ("Birthday poem for grandmother", 45, ("letters",)),
    ("期末報告大綱", 80, ()),
    ("SQL: running totals by month", 400, ("python",)),
)


def shelf() -> list[Imported]:
    """Conversations of some years."""
    plain = said("Tell me.", ("text", "Gladly: it depends on the heating, the flour and the patience of the baker."))
    return [talk(title, plain, days, tags=tags) for title, days, tags in SHELF]
