"""What a worker knows of its models before it has loaded them: where they are, and what to say about them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from broker.messages import JOBS, ModelCard
from broker.sources import BUILT_IN, WITHOUT_MODEL, ModelSource

POCKET = Path(__file__).parent / "pocket"
RANKS = {"pocket": 1, "echo": 2}


def resolve(model: ModelSource) -> ModelSource:
    """The model as it is; the one in the box with its folder."""
    return replace(model, source=str(POCKET)) if model.source == "pocket" else model


def describe(model: ModelSource) -> ModelCard:
    """The card that the registry shows while the model loads."""
    return ModelCard(
        model.name,
        kind=JOBS if model == WITHOUT_MODEL else "chat",
        licence=model.licence,
        description=model.description or BUILT_IN.get(model.source, ""),
        organisation=model.organisation,
        link=model.link,
        defaults=model.defaults,
        rank=RANKS.get(model.source, 0),
    )


def ready(described: Sequence[ModelCard], served: Sequence[ModelCard]) -> tuple[ModelCard, ...]:
    """The engine's cards, with what was said about the models of their names before."""
    known = {card.name: card for card in described}
    return tuple(_ready(known.get(card.name, card), card) for card in served)


def _ready(described: ModelCard, card: ModelCard) -> ModelCard:
    return replace(
        card,
        state="ready",
        progress=100,
        licence=described.licence or card.licence,
        description=described.description or card.description,
        organisation=described.organisation,
        link=described.link,
        defaults=described.defaults,
        rank=described.rank,
    )
