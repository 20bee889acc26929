from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tritrack.stages.edge_sum import sum_edges


@pytest.mark.parametrize(
    ("index", "n_hits", "wanted"),
    [
        ([0, 1, 2], 3, [1.0, 2.0, 3.0]),
        ([2, 2, 2], 3, [0.0, 0.0, 6.0]),
        ([1, 0, 1], 4, [2.0, 4.0, 0.0, 0.0]),
        ([], 2, [0.0, 0.0]),
        ([], 0, []),
    ],
)
def test_sums_rows_of_one_index(index, n_hits, wanted):
    values = torch.arange(1.0, len(index) + 1)[:, None].expand(-1, 2)
    total = sum_edges(values, torch.tensor(index, dtype=torch.int64), torch.zeros(n_hits, 7))
    assert total.tolist() == [[value, value] for value in wanted]


def test_gradient():
    values = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([4, 0, 4, 4, 2, 0])
    like = torch.zeros(5, 1)
    assert torch.autograd.gradcheck(lambda v: sum_edges(v, index, like), (values,))


def test_is_a_proper_operator():
    arguments = (torch.randn(4, 3, requires_grad=True), torch.tensor([1, 1, 0, 1]), torch.zeros(3, 2))
    torch.library.opcheck(
        torch.ops.tritrack.sum_edges.default,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
