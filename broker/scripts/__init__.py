"""The Lua scripts, the only writers of a request's state: each one is atomic.

Every script is `keys.LUA` (the key names), then common.lua (what scripts share), then its own file. Scripts make key
names from ids, so a fleet has one primary: Sentinel, not Cluster. Times are Redis' own (TIME, in ms), so that clocks
that differ do no harm. Channel names are never in KEYS, since the access check refuses them there.
"""

from importlib.resources import files

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from broker import keys


class Scripts:
    """The scripts by name, each callable with `args=[...]`; loaded into the server when it does not have them."""

    def __init__(self, redis: Redis) -> None:
        folder = files(__name__)
        shared = keys.LUA + (folder / "common.lua").read_text()

        def script(name: str) -> AsyncScript:
            return redis.register_script(shared + (folder / f"{name}.lua").read_text())

        self.enqueue = script("enqueue")
        self.claim = script("claim")
        self.renew = script("renew")
        self.append = script("append")
        self.release = script("release")
        self.cancel = script("cancel")
        self.end = script("end")
        self.delete = script("delete")
        self.expire = script("expire")
        self.beat = script("beat")
        self.leave = script("leave")
        self.spend = script("spend")
        self.prune = script("prune")
        self.change = script("change")
        self.delete = script("delete")
        self.restore = script("restore")
        self.forget = script("forget")
        self.retain = script("retain")
        self.bout = script("bout")
        self.withdraw = script("withdraw")
        self.settle = script("settle")
        self.approve = script("approve")
        self.record = script("record")
        self.archive = script("archive")
        self.reveal = script("reveal")
        self.void = script("void")
        self.share = script("share")
        self.revoke = script("revoke")
