from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest

from tritrack.bench.turns import orders


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 9])
def test_every_contestant_has_each_place_and_follows_each_other_one_equally_often(n):
    n_rounds = 2 * n if n % 2 else n
    for seed in (0, 1):
        found = list(islice(orders(n, seed=seed), 2 * n_rounds))
        for cycle in (found[:n_rounds], found[n_rounds:]):
            assert all(sorted(order) == list(range(n)) for order in cycle)
            places = Counter(place for order in cycle for place in enumerate(order))
            follows = Counter(pair for order in cycle for pair in pairwise(order))
            assert (len(places), len(set(places.values()))) == (n * n, 1)
            assert (len(follows), len(set(follows.values()))) == (n * (n - 1), min(1, n - 1))


def test_the_orders_are_those_of_the_seed():
    some = list(islice(orders(6, seed=1), 12))
    assert some == list(islice(orders(6, seed=1), 12))
    assert some != list(islice(orders(6, seed=2), 12))
