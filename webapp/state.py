"""What the app holds, by typed key; what a module makes itself has its key beside it."""

from aiohttp import web

from broker.connection import Broker

BROKER = web.AppKey("broker", Broker)
