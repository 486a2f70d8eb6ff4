import signal

import lightning as L
import pytest
import torch
from recdistill_core.errors import RecdistillError
from torch.utils.data import DataLoader

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.trainer import MyPluginTrainer


class Slope(L.LightningModule):
    """One weight whose loss has a gradient of 100 at each step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return 100.0 * self.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Rows(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(torch.zeros(3), batch_size=1)


class Interrupt(L.Callback):
    def on_train_batch_end(self, *args):
        signal.raise_signal(signal.SIGTERM)


def fit(tmp_path, module, *callbacks):
    trainer = MyPluginTrainer(MyPluginConfig(clip=0.5, accelerator="cpu"))
    trainer.fit(module, Rows(), epochs=2, callbacks=callbacks, out=tmp_path / "log", title="the slope")


def test_gradients_are_clipped_and_a_profile_is_left(tmp_path):
    module = Slope()
    fit(tmp_path, module)
    assert module.weight.item() == pytest.approx(-0.5 * 3 * 2)
    (profile,) = (tmp_path / "log").iterdir()
    assert "run_training_batch" in profile.read_text()


def test_a_signal_ends_in_an_error_that_says_so(tmp_path):
    with pytest.raises(RecdistillError, match="the slope was interrupted"):
        fit(tmp_path, Slope(), Interrupt())


@pytest.mark.parametrize("clip", [0.0, -1.0, float("inf"), float("nan")])
def test_clip_has_a_range(clip):
    with pytest.raises(ValueError, match="clip must be > 0 and finite"):
        MyPluginConfig(clip)
