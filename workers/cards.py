"""What a worker knows of its model before it has loaded it: where it is, and what to say about it."""

from pathlib import Path

from broker.messages import ModelCard
from broker.sources import BUILT_IN, ModelSource

POCKET = Path(__file__).parent / "pocket"
RANKS = {"pocket": 1, "echo": 2}


def resolve(source: str) -> str:
    """A folder or hub id as it is; for the model in the box its folder."""
    return str(POCKET) if source == "pocket" else source


def describe(model: ModelSource) -> ModelCard:
    """The card that the registry shows while the model loads."""
    rank = RANKS.get(model.source, 0)
    return ModelCard(model.name, description=BUILT_IN.get(model.source, ""), rank=rank)
