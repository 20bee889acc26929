"""The sum over edges: one function, to be rendered once per engine from the same module and weights."""

from __future__ import annotations

import torch
from torch import Tensor

# A custom operator stays one node in an exported graph, so that each engine's export can choose the
# rendering that is right and fast there (see tritrack.export.edge_sum).


@torch.library.custom_op("tritrack::sum_edges", mutates_args=())
def sum_edges(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Sum the rows of ``values`` that share an index.

    Parameters
    ----------
    values
        float [n_edges, width]; give them in float32, a sum of a few dozen terms loses its last ones in 16 bits.
    index
        int64 [n_edges], the hit that each edge adds to, in any order.
    like
        [n_hits, ...]; only its number of rows is used.

    Returns
    -------
    Tensor
        float [n_hits, width]; zero for a hit without edges.
    """
    total = values.new_zeros(like.shape[0], values.shape[1])
    return total.scatter_add_(0, index[:, None].expand_as(values), values)


@sum_edges.register_fake
def _(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    return values.new_empty(like.shape[0], values.shape[1])


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
    (index,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return grad[index], None, None


sum_edges.register_autograd(_backward, setup_context=_setup_context)
