import numpy as np
import pytest
from recdistill_core.interfaces import Candidates

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.sampler import MS_PER_DAY, MyPluginSampler


def candidates(days):
    number = np.arange(len(days))
    embedding, logits = np.zeros((len(days), 2), np.float32), {"click": np.zeros(len(days), np.float32)}
    return Candidates(number, np.asarray(days) * MS_PER_DAY, number, embedding, logits)


def test_an_example_a_half_life_older_is_half_as_likely():
    sampler = MyPluginSampler(MyPluginConfig(half_life_days=2.0))
    drawn = [sampler.select(candidates([0, 2]), 1, seed)[0] for seed in range(3000)]
    assert np.mean(drawn) == pytest.approx(2 / 3, abs=0.03)


def test_a_short_half_life_takes_the_newest():
    sampler = MyPluginSampler(MyPluginConfig(half_life_days=0.001))
    assert sampler.select(candidates(range(50)), 5, seed=1).tolist() == [49, 48, 47, 46, 45]


@pytest.mark.parametrize("days", [0.0, -1.0, float("nan")])
def test_half_life_has_a_range(days):
    with pytest.raises(ValueError, match="half_life_days must be > 0"):
        MyPluginConfig(days)
