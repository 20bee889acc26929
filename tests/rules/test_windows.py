from __future__ import annotations

from dataclasses import fields

import msgspec
import numpy as np
import pytest

pytest.importorskip("numba")

from tritrack.events.layers import Layers
from tritrack.rules.windows import RULES_FILE, RulesError, read_rules, write_rules


def test_rules_come_back(barrel_rules, tmp_path):
    path = write_rules(barrel_rules, tmp_path / "new")
    assert path == tmp_path / "new" / RULES_FILE
    back = read_rules(tmp_path / "new")
    assert back.windows == barrel_rules.windows
    assert [type(value) for value in back.windows] == [type(value) for value in barrel_rules.windows]
    assert back.hash == barrel_rules.hash
    assert (back.name, back.field, back.max_hits, back.metrics) == ("barrel", 2.0, 5000, barrel_rules.metrics)
    np.testing.assert_array_equal(back.steps, barrel_rules.steps)
    for field in fields(Layers):
        wanted, found = getattr(barrel_rules.layers, field.name), getattr(back.layers, field.name)
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 99}, "format 99, this version reads 1"),
        ({"windows": {"join": 1.0}}, "windows lacks or has too much: follow, long, max_chi2"),
        ({"steps": [[0, 10]]}, r"steps between layers that the file lacks \(10 layers\)"),
        ({"layers": []}, r"steps between layers that the file lacks \(0 layers\)"),
        ({"layers": "none"}, r"Expected `array`, got `str` - at `\$.layers`"),
        ({"field": 0.0}, r"Expected `float` > 0.0 - at `\$.field`"),
        ({"more": 1}, "unknown field `more`"),
    ],
)
def test_files_that_cannot_be_used(barrel_rules, tmp_path, change, sentence):
    path = write_rules(barrel_rules, tmp_path)
    content = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(content | change))
    with pytest.raises(RulesError, match=sentence) as raised:
        read_rules(tmp_path)
    assert str(path) in str(raised.value)


def test_a_folder_without_rules(tmp_path):
    with pytest.raises(RulesError, match=f"no {RULES_FILE} there; tritrack tune --finder rules writes it"):
        read_rules(tmp_path)
