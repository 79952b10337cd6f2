import pytest


async def test_presets_over_http(browser):
    async with browser.get("/"):
        pass
    settings = {
        "temperature": 0,
        "system": "",
        "stop": ["a"],
        "structure": {"kind": "regex", "value": "x+"},
        "thinking": False,
    }
    async with browser.put("/presets/a%2Fb%20語", json=settings | {"seed": None}) as response:
        assert response.status == 204
    async with browser.get("/presets") as response:
        assert await response.json() == {"presets": [{"name": "a/b 語", "settings": settings}]}
    async with browser.patch("/presets/a%2Fb%20語", json={"name": "c"}) as response:
        assert response.status == 204
    async with browser.delete("/presets/c") as response:
        assert response.status == 204
    async with browser.delete("/presets/c") as response:
        assert response.status == 404
    async with browser.get("/presets") as response:
        assert await response.json() == {"presets": []}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"temperature": 3}, "temperature"),
        ({"min_p": 2}, "min_p"),
        ({"colour": "red"}, "colour"),
        ({"structure": {"kind": "poem"}}, "structure.kind"),
        ([], "message"),
        (3, "message"),
    ],
)
async def test_what_no_ask_could_carry_is_refused(browser, body, word):
    async with browser.put("/presets/p", json=body) as response:
        assert response.status == 400
        assert word in (await response.json())["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"{}", b'{"name": 3}', b"[]", b"[" * 5000])
async def test_a_rename_needs_a_name(browser, body):
    async with browser.patch("/presets/p", data=body, headers={"Content-Type": "application/json"}) as response:
        assert response.status == 400
