"""Somebody whom a test can kill: asks for answers that nobody keeps, and listens.

python tests/faults/asker.py TEXT COUNT      REDIS_URL says where; prints each request's id once it is accepted
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from broker import chat
from broker.config import Config
from broker.connection import Broker
from broker.messages import ChatRequest, Message


async def listen(broker: Broker, text: str) -> None:
    asked = ChatRequest("echo", (Message("user", text),), keep=False)
    async with chat.ask(broker, asked) as frames:
        print(asked.request_id, flush=True)
        async for _ in frames:
            pass


async def main(text: str, count: int) -> None:
    async with Broker.open(Config.from_env()) as broker, asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(listen(broker, text))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
