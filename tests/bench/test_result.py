from __future__ import annotations

from dataclasses import dataclass

import pytest

pytest.importorskip("torch")

from tritrack.bench.result import Header, ResultError, make_header, read_result, write_result
from tritrack.stages.weights import load_weights


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
