from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from tritrack.stages.card import (
    CARD_FILE,
    WORKING_POINTS,
    CardError,
    Cuts,
    ForeignStage,
    Limits,
    ModelCard,
    Networks,
    Windows,
    WorkingPoint,
    read_card,
)
from tritrack.stages.pipeline import Pipeline

WINDOWS = Windows(max_z0=200.0, max_curvature=1.8e-3, overlap=15.0)
CUTS = Cuts(
    graph="radius", radius=0.5, windows=WINDOWS, k=50, filter_cut=0.1, gnn_cut=0.5, labelling="components"
)
METRICS = {"pileup 200": {"efficiency": 0.96, "n_edges": 500_000.0}, "pileup 40": {}}
CARD = ModelCard(
    name="hand-made",
    networks=Networks(),
    working_points={
        "best": WorkingPoint(cuts=replace(CUTS, radius=0.7), metrics=METRICS),
        "fast": WorkingPoint(cuts=CUTS, metrics={}),
    },
    default="best",
    limits=Limits(max_hits=100, max_pairs=100, max_edges=100),
    sha256={},
)


TRAINING = {
    "seed": 1,
    "sets": [{"n_events": 1, "simulation": None, "n_hits": 2}],
    "steps": {},
    "minutes": {},
    "versions": {},
}


def test_a_card_comes_back_as_it_was(tmp_path):
    (tmp_path / CARD_FILE).write_bytes(CARD.to_json())
    card = read_card(tmp_path)
    assert card == CARD
    assert card.hash == CARD.hash


def test_points_have_an_order_and_a_default():
    assert WORKING_POINTS == ("fast", "balanced", "best")
    assert CARD.points == ("fast", "best")
    assert CARD.point() is CARD.point("best")
    assert CARD.point("fast").cuts == CUTS


def test_a_point_that_is_not_there():
    sentence = r"^model hand-made: has no working point balanced, it has fast, best$"
    with pytest.raises(CardError, match=sentence):
        CARD.point("balanced")
    with pytest.raises(CardError, match=sentence):
        Pipeline(card=CARD, engines={}, working_point="balanced")


def test_foreign_stages_are_in_the_card_where_there_are_any(tmp_path):
    assert b"foreign" not in CARD.to_json()
    card = replace(
        CARD, foreign={"gnn": ForeignStage(inputs=("x", "edge_index"), output="logits", sigmoid=True)}
    )
    assert card.hash != CARD.hash
    (tmp_path / CARD_FILE).write_bytes(card.to_json())
    assert read_card(tmp_path) == card


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"foreign": {"graph": {"inputs": [], "output": "y"}}}, r"Invalid enum value 'graph'"),
        ({"foreign": {"gnn": {"inputs": ["x"]}}}, r"missing required field `output`"),
        ({"default": "balanced"}, r"default is balanced, but the working points there are: fast, best"),
        ({"working_points": {}}, r"default is best, but the working points there are: none"),
        ({"default": "quick"}, r"Invalid enum value 'quick'"),
        ({"working_points": {"quick": None}}, r"Invalid enum value 'quick'"),
        ({"working_points": {"best": {"metrics": {}}}}, r"missing required field `cuts`"),
        ({"working_points": {"best": {"cuts": {"windows": {"min_chain": 65}}}}}, r"Expected `int` <= 64"),
        ({"contract_version": 0}, r"speaks contract version 0"),
        ({"limit": {"max_hits": 1}}, r"a card has no field limit"),
        ({"training": TRAINING}, r"a card has no field training\.sets\.0\.n_hits"),
        (
            {"limits": {"max_hits": 1, "max_pairs": 1, "max_edges": 1, "max_track": 1}},
            r"no field limits\.max_track",
        ),
    ],
)
def test_a_card_that_cannot_be_used(tmp_path, change, sentence):
    (tmp_path / CARD_FILE).write_bytes(msgspec.json.encode(msgspec.to_builtins(CARD) | change))
    with pytest.raises(CardError, match=rf"card\.json: .*{sentence}"):
        read_card(tmp_path)
