"""The loss: equal to plain cross-entropy, and never with all logits in fp32."""

import weakref
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sweepcp.data.stream import IGNORED
from sweepcp.training import loss
from sweepcp.training.loss import _ChunkedCrossEntropy, chunked_cross_entropy

ROWS, ENTRIES = 50, 40


def logits_and_targets(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(ROWS, ENTRIES, generator=generator)
    targets = torch.randint(0, ENTRIES, (ROWS,), generator=generator)
    targets[[0, 7, 20, 49]] = IGNORED
    return logits.to(dtype).requires_grad_(), targets


@pytest.mark.parametrize("chunk_rows", [1, 7, 50, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_plain_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chunk_rows: int
):
    monkeypatch.setattr(loss, "CHUNK_BYTES", 2 * 4 * ENTRIES * chunk_rows)
    logits, targets = logits_and_targets(dtype)
    plain = logits.detach().float().requires_grad_()
    factors = torch.linspace(-1, 2, ROWS)
    expected = cross_entropy(plain, targets, ignore_index=IGNORED, reduction="none")
    (expected * factors).sum().backward()
    losses = _ChunkedCrossEntropy.apply(logits, targets)
    (losses * factors).sum().backward()
    assert logits.grad is not None
    assert plain.grad is not None
    assert (losses.dtype, logits.grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logits.grad, plain.grad.to(dtype), atol=1e-7, rtol=1e-2)
    assert (logits.grad[targets == IGNORED] == 0).all()
    assert losses[0] == 0


def test_the_gradient_of_a_target_that_is_almost_certain_is_not_lost():
    """In bf16, a share of 0.999 is 1, and 1 less 1 would be nothing."""
    logits = torch.tensor([[8.0, 1.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    chunked_cross_entropy(logits, torch.tensor([0])).sum().backward()
    expected = torch.softmax(logits.detach().double(), -1) - torch.tensor([1.0, 0, 0])
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.double(), expected, atol=0, rtol=2**-8)


class Fp32Elements(TorchDispatchMode):
    """Records how many elements of fp32 there are at most at a time in tensors of some size."""

    def __init__(self, *, smallest: int) -> None:
        super().__init__()
        self.smallest = smallest
        self.tensors: list[weakref.ref[torch.Tensor]] = []
        self.most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32:
                self.tensors.append(weakref.ref(leaf))
        alive = [tensor for reference in self.tensors if (tensor := reference()) is not None]
        sizes = {tensor.data_ptr(): tensor.numel() for tensor in alive}
        self.most = max(self.most, sum(size for size in sizes.values() if size >= self.smallest))
        return result


def test_logits_in_bf16_are_never_whole_in_fp32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * ENTRIES * 20)
    logits, targets = logits_and_targets(torch.bfloat16)
    with Fp32Elements(smallest=2 * ROWS) as elements:
        chunked_cross_entropy(logits, targets).sum().backward()
    assert elements.most == 20 * ENTRIES


def test_in_fp32_on_a_cpu_it_is_plain_cross_entropy_to_the_last_bit():
    logits, targets = logits_and_targets(torch.float32)
    losses = chunked_cross_entropy(logits, targets)
    expected = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    assert torch.equal(losses, expected)
    assert type(losses.grad_fn) is type(expected.grad_fn)
