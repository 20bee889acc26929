from __future__ import annotations

import math
from dataclasses import replace

import pytest

for library in ("torch", "acts", "pythia8mc"):
    pytest.importorskip(library)

from tritrack.bench.guard import difference, worse_ratios
from tritrack.bench.result import Header

HEADER = Header(
    measurement="engines",
    cpu="a processor",
    cores=2,
    threads=1,
    versions={},
    model="small",
    card_sha256="0",
    working_point="best",
)


@pytest.mark.parametrize(
    ("reference", "found", "wanted"),
    [
        ({}, {}, []),
        ({"a": 2.0}, {"a": 2.0}, []),
        ({"a": 2.0}, {"a": 1.5}, []),  # just 25 % lower
        ({"a": 2.0}, {"a": 1.49}, [("a", -0.255)]),
        ({"a": 2.0}, {"a": 20.0}, []),
        ({"a": 2.0}, {}, [("a", -1.0)]),
        ({"a": 2.0}, {"a": math.nan}, [("a", math.nan)]),
        ({}, {"a": 0.1}, []),
        (
            {"a": 2.0, "b": 1.0, "c": 4.0, "d": 1.0},
            {"a": 1.4, "c": 1.0, "d": 1.0, "e": 9.0},
            [("b", -1.0), ("c", -0.75), ("a", -0.3)],
        ),
    ],
)
def test_what_is_worse_is_named_worst_first(reference, found, wanted):
    worse = worse_ratios(reference, found)
    assert [one.name for one in worse] == [name for name, _ in wanted]
    assert [one.change for one in worse] == pytest.approx([change for _, change in wanted], nan_ok=True)
    assert all(one.name in one.line() for one in worse)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, None),
        ({"versions": {"numpy": "1"}}, None),
        ({"cpu": "other"}, "another processor"),
        ({"cores": 3, "card_sha256": "1"}, "another number of cores, another model card"),
    ],
)
def test_another_machine_or_model_is_said(change, wanted):
    said = difference(HEADER, replace(HEADER, **change))
    assert said == (wanted and f"the committed ratios are of {wanted}")
