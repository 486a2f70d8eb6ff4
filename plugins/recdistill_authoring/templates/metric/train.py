"""The metric ``my-plugin`` in a Lightning script of one's own, on a small simulated feed."""

from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from recdistill_core import BuildContext, Objective, installed, make
from recdistill_lightning import DistillationDataModule, StudentModule
from recdistill_parquet.dataset_writer import write_dataset


def fit(module: LightningModule, data: DistillationDataModule, *callbacks: Callback) -> None:
    """Train; any other callback, logger or setting of a ``Trainer`` goes here."""
    trainer = Trainer(
        max_epochs=data.epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False, limit_val_batches=0
    )
    trainer.fit(module, datamodule=data)


seed_everything(1)
home = Path(mkdtemp())
feed = {"name": "simulator", "users": 60, "items": 60, "impressions": 1500, "history_length": 10}
write_dataset(make(installed(), "importer", feed).open(), home / "dataset")
source = make(installed(), "source", {"name": "parquet", "path": str(home / "dataset")})
context = BuildContext(source.schema, ("click",))
rows = (0, source.num_rows * 4 // 5)

student = StudentModule(make(installed(), "student", "mlp", context), {"click": Objective("click")})
data = DistillationDataModule(source, train=rows, history=student.history)
fit(student, data)

# A metric is given whole columns: what the student serves for the rows that come after the training rows.
batch = source.batch(np.arange(rows[1], source.num_rows), student.history)
with torch.no_grad():
    logit = student.eval()(batch)["click"].double().numpy()
_, user = np.unique(batch.user_id.numpy(), return_inverse=True)
metric = make(installed(), "metric", "my-plugin")
evaluate = metric.prepare(logit, batch.labels["click"].double().numpy(), user)
print(f"{type(metric).__name__} of {len(batch)} later rows: {evaluate(np.ones(user.max() + 1)):.4f}")
