import pytest
import torch
from recdistill_core import Batch
from recdistill_core.errors import DataError

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.loss import MyPluginLoss

ids = torch.arange(3)
BATCH = Batch(ids, ids, ids, ids, ids, ids[:, None], torch.zeros(3, 0))


def test_it_is_quadratic_up_to_delta_and_linear_beyond():
    loss = MyPluginLoss(MyPluginConfig(delta=1.0))
    values = loss(torch.tensor([0.5, 2.0, -2.0]), torch.zeros(3), BATCH, torch.tensor([1.0, 1.0, 2.0]))
    assert torch.allclose(values, torch.tensor([0.5 * 0.25, 1.5, 3.0]))


def test_it_refuses_shapes_that_would_broadcast():
    loss = MyPluginLoss(MyPluginConfig())
    with pytest.raises(DataError, match=r"must have one shape \[N\], got \[3\], \[3, 1\], \[3\]"):
        loss(torch.zeros(3), torch.zeros(3, 1), BATCH, torch.ones(3))


@pytest.mark.parametrize("delta", [0.0, -1.0, float("inf"), float("nan")])
def test_delta_has_a_range(delta):
    with pytest.raises(ValueError, match="delta must be > 0 and finite"):
        MyPluginConfig(delta)
