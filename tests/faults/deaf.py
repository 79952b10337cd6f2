"""A page that a test can stop: connects, follows an answer if there is one, and prints `connected`.

python tests/faults/deaf.py PORT [COOKIE REQUEST_ID TIMES]
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp

from broker.messages import pack


async def main(port: str, cookie: str = "", request_id: str = "", times: str = "0") -> None:
    headers = {"Cookie": cookie} if cookie else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.ws_connect(f"http://127.0.0.1:{port}/ws", max_msg_size=0) as ws:
            for _ in range(int(times)):
                await ws.send_bytes(pack({"type": "resume", "request_id": request_id}))
            await asyncio.sleep(0.5)  # reads nothing, so that all buffers between here and there fill up
            print("connected", flush=True)
            await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
