import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from train.dropout import DropoutSeed, DroppedProjection

P = 0.05


@pytest.fixture
def projection() -> DroppedProjection:
    plain = nn.Linear(400, 3, bias=False)
    return DroppedProjection(plain, P, salt=1, seed=torch.tensor(7, dtype=torch.int32)).train()


def dropped(projection: DroppedProjection, rows: int = 500) -> torch.Tensor:
    """Which inputs of a projection that adds them up were dropped, one row a token."""
    eye = torch.eye(projection.in_features)
    projection.weight = nn.Parameter(eye)
    return projection(torch.ones(rows, projection.in_features)) == 0


def test_the_share_dropped_is_p(projection: DroppedProjection) -> None:
    assert dropped(projection).float().mean() == pytest.approx(P, abs=0.002)


def test_what_is_kept_is_scaled_up(projection: DroppedProjection) -> None:
    projection.weight = nn.Parameter(torch.eye(400))
    kept = projection(torch.ones(10, 400))
    assert kept.unique().tolist() == [0, pytest.approx(1 / (1 - P))]


def test_the_mask_hangs_on_seed_and_salt_alone(projection: DroppedProjection) -> None:
    first = dropped(projection)
    assert torch.equal(first, dropped(projection))
    projection.seed.fill_(8)
    other = dropped(projection)
    projection.seed.fill_(7)
    projection.salt.fill_(2)
    salted = dropped(projection)
    for mask in (other, salted):
        both = (first & mask).float().mean()
        assert both == pytest.approx(P * P, abs=0.001)


def test_the_gradient_goes_where_the_input_was_kept(projection: DroppedProjection) -> None:
    x = torch.randn(20, 400, requires_grad=True)
    projection(x).sum().backward()
    kept = ~dropped(projection, 20)
    assert x.grad is not None
    assert torch.equal(x.grad != 0, kept)


def test_the_input_is_all_that_is_kept_for_the_backward_pass() -> None:
    plain = nn.Linear(400, 3, bias=False)
    projection = DroppedProjection(plain, P, salt=1, seed=torch.tensor(7, dtype=torch.int32))
    x = torch.randn(20, 400, requires_grad=True)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        projection.train()(x)
    assert all(tensor is x or tensor.numel() <= 3 * 400 for tensor in kept)


def test_nothing_is_dropped_in_evaluation(projection: DroppedProjection) -> None:
    assert not dropped(projection.eval()).any()


def test_an_adapter_keeps_its_names_and_weights() -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),  # type: ignore[arg-type]
        LoraConfig(r=2, target_modules=["0", "1"], lora_dropout=P),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seed = DropoutSeed(model, 42, torch.device("cpu"))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    found = [m for m in model.modules() if isinstance(m, DroppedProjection)]
    assert len({int(m.salt) for m in found}) == 2
    seed.draw(1, 0, 0)
    drawn = int(found[0].seed)
    seed.draw(1, 0, 1)
    assert int(found[1].seed) != drawn
    seed.draw(1, 0, 0)
    assert int(found[1].seed) == drawn
