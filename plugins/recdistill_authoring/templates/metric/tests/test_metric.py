import numpy as np
import pytest
from recdistill_core.errors import DataError

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.metric import MyPluginMetric

LOGIT = np.array([0.0, 0.0, 0.0, 2.0])
LABEL = np.array([1.0, 0.0, 1.0, 1.0])
USER = np.array([0, 0, 0, 1])


def test_every_user_has_one_vote():
    evaluate = MyPluginMetric(MyPluginConfig()).prepare(LOGIT, LABEL, USER)
    second = np.log1p(np.exp(-2.0))
    assert evaluate(np.ones(2)) == pytest.approx((np.log(2) + second) / 2)
    assert evaluate(np.array([2.0, 1.0])) == pytest.approx((2 * np.log(2) + second) / 3)


def test_users_with_few_rows_are_left_out():
    metric = MyPluginMetric(MyPluginConfig(min_rows=2))
    evaluate = metric.prepare(LOGIT, LABEL, USER)
    assert evaluate(np.ones(2)) == pytest.approx(np.log(2))
    assert np.isnan(evaluate(np.array([0.0, 1.0])))


@pytest.mark.parametrize(("logit", "label"), [([np.nan], [1.0]), ([0.0], [0.5]), ([], [])])
def test_bad_rows_are_refused(logit, label):
    metric = MyPluginMetric(MyPluginConfig())
    with pytest.raises(DataError, match="finite logits and labels of 0 and 1"):
        metric.prepare(np.array(logit), np.array(label), np.zeros(len(logit), np.int64))


def test_min_rows_has_a_range():
    with pytest.raises(ValueError, match="min_rows must be >= 1, got 0"):
        MyPluginConfig(0)
