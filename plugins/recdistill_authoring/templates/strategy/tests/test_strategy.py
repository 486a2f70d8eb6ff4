import pytest
import torch

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.strategy import MyPluginStrategy


class Parts:
    def hard(self, logit):
        return logit.square()

    def soft(self, logit):
        return logit.abs()


def gradients(terms, heads):
    total = torch.stack(list(terms.values())).sum()
    return dict(zip(heads, torch.autograd.grad(total, list(heads.values())), strict=True))


def test_each_tower_learns_from_its_own_side():
    heads = {name: torch.full((3,), 2.0, requires_grad=True) for name in ("main", "auxiliary")}
    terms = MyPluginStrategy(MyPluginConfig(weight=5.0)).terms(heads, Parts())
    assert set(terms) == {"main/hard", "auxiliary/soft"}
    found = gradients(terms, heads)
    assert torch.equal(found["main"], torch.full((3,), 4.0))
    assert torch.equal(found["auxiliary"], torch.full((3,), 5.0))


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_weight_has_a_range(weight):
    with pytest.raises(ValueError, match="weight must be >= 0 and finite"):
        MyPluginConfig(weight)
