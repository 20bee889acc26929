"""Which layers compute in bfloat16."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tritrack.stages.networks import EmbeddingNetwork, FilterNetwork, GnnNetwork
from tritrack.training.precision import keep_first_layers, mixed_precision

HITS = torch.tensor([[30.0, 1.0, 5.0], [70.0, 2.0, 11.0], [110.0, 3.0, 17.0]])
PAIRS = torch.tensor([[0, 1], [1, 2]], dtype=torch.int32)


def linear_dtypes(network, *inputs):
    """Return the dtype of what each linear layer gives, by its name, in mixed precision."""
    seen = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
    with mixed_precision(network):
        (network.logits if hasattr(network, "logits") else network)(*inputs)
    return seen


@pytest.mark.parametrize(
    ("network", "exact"),
    [
        (FilterNetwork(widths=(8, 4)), {"first.inner", "first.outer", "first.edge"}),
        (GnnNetwork(width=4, steps=1), {"encode_hits.0", "encode_pairs.0"}),
    ],
)
def test_layers_that_see_features_stay_in_float32(network, exact):
    keep_first_layers(network)
    dtypes = linear_dtypes(network, HITS, PAIRS)
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == exact
    assert set(dtypes.values()) == {torch.float32, torch.bfloat16}
    with torch.no_grad():
        assert network.logits(HITS, PAIRS).dtype == torch.float32  # outside nothing has changed


def test_the_embedding_stays_in_float32():
    network = EmbeddingNetwork(width=8, layers=2, dim=3)
    keep_first_layers(network)
    assert set(linear_dtypes(network, HITS).values()) == {torch.float32}


def test_gradients_are_float32():
    network = GnnNetwork(width=4, steps=1)
    keep_first_layers(network)
    with mixed_precision(network):
        network.logits(HITS, PAIRS).sum().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
