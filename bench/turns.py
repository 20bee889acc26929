"""The order in which contestants take their turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


def orders(n: int, *, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """Yield the order of each round, without end: what one leaves behind falls on no one in particular.

    In each n rounds (2 n of an odd n) every contestant has each place, and comes right after each other one, equally
    often (E. J. Williams, Aust. J. Sci. Res. A 2 (1949) 149). The seed draws which of these rounds comes when.

    Parameters
    ----------
    n
        Contestants.
    seed
        The same orders for the same seed.
    """
    rng = np.random.default_rng(seed)
    # 0, 1, n - 1, 2, n - 2, ...: the steps between neighbours all differ, of an odd n together with the way back.
    first = np.array([(place + 1) // 2 if place % 2 else -(place // 2) for place in range(n)])
    rounds = (first + np.arange(n)[:, np.newaxis]) % n
    if n % 2:
        rounds = np.concatenate([rounds, rounds[:, ::-1]])
    while True:
        for order in rng.permutation(rounds):
            yield tuple(order.tolist())
