import pytest
import torch
from torch.nn.functional import cross_entropy

from train import loss
from train.loss import summed_cross_entropy


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", 4)


def whole(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, importance: torch.Tensor
) -> torch.Tensor:
    losses = cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
    return (losses * importance).sum()


@pytest.mark.parametrize("tokens", [1, 4, 10])
def test_loss_and_gradient_are_those_of_all_logits_at_once(tokens: int) -> None:
    torch.manual_seed(tokens)
    weight, targets = torch.randn(50, 16), torch.randint(50, (tokens,))
    importance = torch.rand(tokens)
    found, expected = (torch.randn(tokens, 16, generator=torch.manual_seed(1)) for _ in range(2))
    values = []
    for hidden, make in ((found, summed_cross_entropy), (expected, whole)):
        hidden.requires_grad_()
        value = make(hidden, weight, targets, importance)
        (value * 0.25).backward()
        values.append(value.item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert found.grad is not None
    assert expected.grad is not None
    assert torch.allclose(found.grad, expected.grad, atol=1e-6)


def test_tokens_that_do_not_count_cost_nothing() -> None:
    hidden = torch.randn(6, 16, requires_grad=True)
    targets = torch.zeros(6, dtype=torch.long)
    value = summed_cross_entropy(hidden, torch.randn(50, 16), targets, torch.zeros(6))
    value.backward()
    assert value.item() == 0
    assert hidden.grad is not None
    assert (hidden.grad == 0).all()
