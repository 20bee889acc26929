from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from tritrack.stages.card import CARD_FILE, CardError, read_card
from tritrack.stages.networks import build_networks
from tritrack.stages.weights import load_weights, save_weights


@pytest.fixture
def folder(small_weights, tmp_path):
    return shutil.copytree(small_weights, tmp_path / "weights")


def test_round_trip(small_weights, tmp_path):
    card, networks = load_weights(small_weights)
    assert save_weights(networks, card=card, folder=tmp_path) == card
    again, same = load_weights(tmp_path)
    assert again == card
    for name, network in networks.items():
        assert not network.training
        state, other = network.state_dict(), same[name].state_dict()
        assert all(torch.equal(state[key], other[key]) for key in state)


def test_the_same_weights_are_the_same_bytes(small_weights, tmp_path):
    card, networks = load_weights(small_weights)
    save_weights(networks, card=card, folder=tmp_path)
    for path in small_weights.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_missing_file(folder):
    (folder / "filter.safetensors").unlink()
    with pytest.raises(CardError, match=r"filter\.safetensors: no weights there"):
        load_weights(folder)


def test_another_file(folder):
    path = folder / "gnn.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CardError, match=r"gnn\.safetensors: not the file that .* was written for"):
        load_weights(folder)


def test_card_of_another_size(folder):
    card = read_card(folder)
    wider = replace(card, networks=replace(card.networks, gnn_width=16))
    (folder / CARD_FILE).write_bytes(wider.to_json())
    with pytest.raises(CardError, match=r"gnn\.safetensors: does not fit the card's network sizes"):
        load_weights(folder)


def test_no_folder(tmp_path):
    with pytest.raises(CardError, match="no model card there"):
        load_weights(tmp_path / "nowhere")


def test_networks_are_named_as_their_stages(small_weights):
    card, networks = load_weights(small_weights)
    assert list(networks) == list(build_networks(card.networks)) == ["embedding", "filter", "gnn"]
