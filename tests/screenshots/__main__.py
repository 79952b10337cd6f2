"""Screenshots of every page and state, in three widths, light and dark, to be looked at.

python -m tests.screenshots FOLDER [--only NAME ...] [--width 390 ...] [--scheme dark] [--language zh-Hant] [--contrast]

FOLDER lies outside the repository. With `--readme` it takes the README's pictures instead, of which FOLDER is this one.
"""

import argparse
import asyncio
import base64
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.async_api import Error

from screenshots.stage import Stage
from screenshots.states import STATES

HEIGHTS = {360: 640, 390: 844, 768: 1024, 1440: 900, 3840: 2160}
WIDTHS = (390, 768, 1440)
SCHEMES = ("light", "dark")
ANEW = ("diagram",)  # drawn by another page, which takes its time when the scheme changes
README = (("chat", 1280, "light"), ("leaderboard", 1280, "light"), ("chat-top", 390, "dark"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=STATES, default=list(STATES), metavar="NAME")
    parser.add_argument("--width", nargs="+", type=int, choices=HEIGHTS, default=WIDTHS)
    parser.add_argument("--scheme", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--language", choices=("en", "zh-Hant"), default="en")
    parser.add_argument("--contrast", action="store_true", help="high contrast")
    parser.add_argument("--readme", action="store_true", help="the README's pictures instead")
    return parser.parse_args()


async def take(stage: Stage, asked: argparse.Namespace, name: str, width: int, schemes: tuple[str, ...]) -> bool:
    """A state's pictures, one for each scheme; where it cannot be reached, a picture of how far it went, and False."""
    contrast = "more" if asked.contrast else "no-preference"
    look = {"color_scheme": schemes[0], "contrast": contrast}
    async with stage.visit(width, HEIGHTS[width], asked.language, **look) as visit:
        try:
            await STATES[name](visit)
        except (AssertionError, Error) as e:
            print(f"{name} {width}: {str(e)[:600]}", flush=True)
            await visit.tab.screenshot(path=asked.folder / f"FAILED-{name}-{width}.png")
            return False
        for scheme in schemes:
            await visit.tab.emulate_media(color_scheme=scheme, contrast=contrast)
            await visit.tab.screenshot(path=asked.folder / f"{name}-{width}-{scheme}.png")
    return True


async def picture(stage: Stage, folder: Path, name: str, width: int, scheme: str) -> None:
    """One of the README's: WebP, which playwright does not write, but Chromium does."""
    async with stage.visit(width, {1280: 800}.get(width, HEIGHTS.get(width)), color_scheme=scheme) as visit:
        await STATES[name](visit)
        session = await visit.tab.context.new_cdp_session(visit.tab)
        taken = await session.send("Page.captureScreenshot", {"format": "webp", "quality": 80})
        (folder / f"{name}.webp").write_bytes(base64.b64decode(taken["data"]))


async def main() -> int:
    asked = arguments()
    asked.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    async with Stage.open() as made:
        if asked.readme:
            for one in README:
                await picture(made, asked.folder, *one)
            return 0
        for name in asked.only:
            turns = [(scheme,) for scheme in asked.scheme] if name in ANEW else [tuple(asked.scheme)]
            for width in asked.width:
                for schemes in turns:
                    failed += not await take(made, asked, name, width, schemes)
            print(name, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
