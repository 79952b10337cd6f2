"""axe's rules on every page and state that the screenshots' table has, in light, dark and high contrast; and its console."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from screenshots.stage import Stage
from screenshots.states import STATES

pytestmark = pytest.mark.timeout(120)

AXE = Path(__file__).parent / "axe" / "axe.min.js"
LOOKS = (("light", "no-preference"), ("dark", "no-preference"), ("dark", "more"))
# All rules once; after that only what an element's colours can break. The page learns of a look in the next frame.
RUN = """async ([light, contrast]) => {
    await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
    await Promise.all(document.getAnimations().map((a) => a.finished.catch(() => {})));
    const colours = ["color-contrast", "link-in-text-block", ...(contrast ? ["color-contrast-enhanced"] : [])];
    const some = light ? {} : { runOnly: { type: "rule", values: colours } };
    const found = await axe.run(document, { resultTypes: ["violations"], ...some });
    return found.violations.flatMap(({ id, nodes }) => nodes.map((n) => `${id}: ${n.target} ${n.any[0]?.message ?? ""}`));
}"""
ALIKE = {  # to axe: each consists of what another one has, too
    "first-visit", "waiting", "thinking", "chat", "chat-top", "chat-chinese", "reasoning", "refused", "long-question",
    "long-chat", "columns-3", "columns-4", "picker-search", "settings", "preset-menu", "sidebar", "archive",
    "search-nothing", "links", "export", "deleting",
}  # fmt: skip
SHOWN = [name for name in STATES if name not in ALIKE]
FORGIVEN = {  # what the console may say of what is meant to be so
    "import-refused": "status of 400",
    "not-found": "status of 404",
    "share-revoked": "status of 404",
    "reconnecting": "ERR_INTERNET_DISCONNECTED",
}


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with Stage.open() as opened:
        yield opened


@pytest.mark.parametrize("name", SHOWN)
async def test_axe_finds_nothing(stage, name):
    language = ("en", "zh-Hant")[SHOWN.index(name) % 2]
    async with stage.visit(1280, 800, language) as visit:
        await STATES[name](visit)
        await visit.tab.evaluate(AXE.read_text() + "\n;0")  # a function would be called
        found = []
        for scheme, contrast in LOOKS:
            await visit.tab.emulate_media(color_scheme=scheme, contrast=contrast)
            asked = [scheme == "light", contrast == "more"]
            found += [f"{scheme} {contrast}: {one}" for one in await visit.tab.evaluate(RUN, asked)]
        assert found == []
        forgiven = FORGIVEN.get(name, "nothing")
        assert [said for said in visit.console if forgiven not in said and "blocked by Playwright" not in said] == []
