"""Whether engines are of the weights that are given beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritrack.failures import UsageError
from tritrack.stages.card import read_card

if TYPE_CHECKING:
    from pathlib import Path

    from tritrack.stages.card import ModelCard


def check_card(folder: Path, *, card: ModelCard) -> None:
    """Refuse engines of other weights (raises UsageError)."""
    found = read_card(folder)
    if found.hash != card.hash:
        raise UsageError(
            f"{folder}: these engines are of {found.name}, not of the weights given ({card.name})"
        )
