"""What the app holds, by typed key; what a module makes itself has its key beside it."""

from aiohttp import web
from jinja2 import Environment

from broker.connection import Broker

BROKER = web.AppKey("broker", Broker)
TEMPLATES = web.AppKey("templates", Environment)
