"""The chat page in a real Chromium: what a person does with one conversation."""

import pytest
from playwright.async_api import expect

pytestmark = pytest.mark.timeout(60)


async def test_an_answer_appears_under_its_question(visitor, tab):
    await visitor.ask("**bold** words")
    await expect(visitor.answer.locator("strong")).to_have_text("bold")
    await expect(tab.locator(".turn.question")).to_have_count(1)
