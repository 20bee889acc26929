from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")

from tritrack.bench.result import Header, ResultError, make_header, read_result, write_result
from tritrack.stages.card import read_card
from tritrack.stages.weights import load_weights

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    header: Header
    sizes: tuple[int, ...]

    def ratios(self) -> dict[str, float]:
        return {}


def test_what_is_written_is_read_back(small_weights, tmp_path):
    card, _ = load_weights(small_weights)
    header = make_header("sizes", card=card, working_point=None, threads=2, packages=["numpy"])
    assert (header.working_point, header.card_sha256) == (card.default, card.hash)
    assert set(header.versions) == {"python", "numpy"}
    result = Sizes(header=header, sizes=(3, 4))
    write_result(result, tmp_path / "new" / "sizes.json")
    assert read_result(tmp_path / "new" / "sizes.json", Sizes) == result


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (None, "no result there"),
        ("{", "truncated"),
        ("{}", "header"),
        ('{"header": {"measurement": "sizes"}}', "cpu"),
    ],
)
def test_another_file_is_refused_by_name(text, wrong, tmp_path):
    path = tmp_path / "sizes.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultError, match=f"sizes.json: .*{wrong}"):
        read_result(path, Sizes)


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "bench" / "results").rglob("*.json")),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_what_is_committed_was_measured_with_the_shipped_model(path):
    written = msgspec.json.decode(path.read_bytes())
    if "rules" in written:
        pytest.skip("of the rules, and of no model")
    said = written["header"]["card_sha256"] if "header" in written else written["card"]["sha256"]
    assert said == read_card(ROOT / "weights" / "default").hash
