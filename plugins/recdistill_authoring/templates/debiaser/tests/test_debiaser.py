from dataclasses import replace

import pytest
import torch
from recdistill_core import Batch
from recdistill_core.errors import DataError

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.debiaser import MyPluginDebiaser

ids = torch.arange(4)
PROPENSITY = torch.tensor([1.0, 0.5, 0.1, 0.01])
BATCH = Batch(ids, ids, ids, ids, ids, ids[:, None], torch.zeros(4, 0), propensity=PROPENSITY)


def test_weights_are_inverse_and_clipped():
    weight = MyPluginDebiaser(MyPluginConfig(clip=0.1)).weight(BATCH, "click")
    assert torch.allclose(weight, torch.tensor([1.0, 2.0, 10.0, 10.0]))


def test_fit_reports_the_share_that_was_clipped():
    debiaser = MyPluginDebiaser(MyPluginConfig(clip=0.1))
    assert debiaser.report() == {}
    debiaser.fit([BATCH, BATCH], "click")
    assert debiaser.report() == pytest.approx({"mean_weight": 23 / 4, "clipped_share": 1 / 4})


def test_a_batch_without_propensities_is_refused():
    debiaser = MyPluginDebiaser(MyPluginConfig())
    with pytest.raises(DataError, match="the batch has no propensities"):
        debiaser.weight(replace(BATCH, propensity=None), "click")


@pytest.mark.parametrize("clip", [0.0, -0.1, 1.1, float("nan")])
def test_clip_has_a_range(clip):
    with pytest.raises(ValueError, match="clip must lie in"):
        MyPluginConfig(clip)
