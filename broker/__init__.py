"""The ground floor: the protocol over Redis, and the records that workers and the web app share.

Knows no torch, no aiohttp and no jinja2. Start at `broker.connection` (Broker) and `broker.chat` (ask).
"""
