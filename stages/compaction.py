"""Stream compaction: the places of the numbers that are at most a bound, found many at a time.

A compiled loop that asks number by number waits for a branch, or for a store, at each. Here a comparison of vectors
answers for ``LANES`` numbers at once, in the bits of an integer, and only bits that are set are gone through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.cpython.unsafe import numbers
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

LANES = 32
"""Numbers that are compared at once; LLVM makes vectors of it that the processor has."""


def _compare(_context: Any, values: Any, first: Any, bound: Any) -> tuple[Any, Callable[..., Any]]:
    """Compile ``_at_most(values, first, bound)``: of a uint32, bit i tells whether ``values[first + i] <= bound``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, number = ir.VectorType(ir.FloatType(), LANES), ir.IntType(32)
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), vector.as_pointer())
        there = builder.load(place, align=4)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[2], number(0))
        bounds = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(number, LANES), [0] * LANES))
        return builder.bitcast(builder.fcmp_ordered("<=", there, bounds), number)

    return types.uint32(values, types.intp, types.float32), generate


_at_most: Any = intrinsic(_compare)
_trailing_zeros: Any = numbers.trailing_zeros


@numba.njit(cache=True, nogil=True)
def append_places(
    values: NDArray[np.float32],
    n_values: int,
    bound: np.float32,
    first: int,
    places: NDArray[np.int32],
    n_places: int,
) -> int:
    """Append the places of the values that are at most a bound, in their order.

    Parameters
    ----------
    values
        float32 [n_values + LANES, or more]; what lies behind the values is overwritten.
    n_values
        How many there are.
    bound
        The bound.
    first
        Place of the first value.
    places
        int32, with room for all of them behind ``n_places``.
    n_places
        Places that are there already.

    Returns
    -------
    int
        Places that are there now.
    """
    for lane in range(LANES):
        values[n_values + lane] = np.nan  # at most nothing
    for start in range(0, n_values, LANES):
        bits = _at_most(values, start, bound)
        while bits:
            places[n_places] = first + start + _trailing_zeros(bits)
            n_places += 1
            bits &= bits - np.uint32(1)
    return n_places
