"""The sampler ``my-plugin`` in a Lightning script of one's own, on a small simulated feed."""

from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from recdistill_core import BuildContext, Objective, installed, make
from recdistill_core.sampler import Candidates, choose
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

# What the cheap model, which has no teacher, makes of each row; the sampler chooses those that a teacher is to label.
batch = source.batch(np.arange(*rows), student.history)
with torch.no_grad():
    embedding = student.eval().student.backbone(batch)
    logits = {task: logit.numpy() for task, logit in student(batch).items()}
columns = {name: getattr(batch, name).numpy() for name in ("example_id", "event_time", "user_id")}
candidates = Candidates(**columns, embedding=embedding.numpy(), logits=logits)

sampler = make(installed(), "sampler", "my-plugin")
chosen = choose(sampler, candidates, len(candidates) // 10, seed=1)
print(f"{type(sampler).__name__} chose {len(chosen)} of {len(candidates)} rows, the first of them row {chosen[0]}")
