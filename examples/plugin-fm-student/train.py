"""The student ``fm`` in a Lightning script of one's own, on a small simulated feed."""

from pathlib import Path
from tempfile import mkdtemp

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from recdistill_core import BuildContext, Objective, installed, make
from recdistill_lightning import DistillationDataModule, LogitCapture, StudentModule, TeacherModule, read_labels
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
store = make(installed(), "store", {"name": "parquet", "path": str(home / "labels")})
context = BuildContext(source.schema, ("click",))
rows = (0, source.num_rows * 4 // 5)

# The teacher's logits land in the store as it trains, each one before the update on its example.
small = {"name": "hstu", "width": 8, "layers": 1, "heads": 1, "hidden": [8]}
teacher = TeacherModule(make(installed(), "teacher", small, context), tasks=["click"])
data = DistillationDataModule(source, train=rows, history=teacher.history)
capture = LogitCapture(store)
fit(teacher, data, capture)

# The student learns from the store and never calls the teacher.
labels, coverage = read_labels(source, store, capture.version, rows)
strategy = make(installed(), "strategy", "rec_distill")
loss = make(installed(), "loss", "soft_ce")
objective = Objective("click", strategy, loss)
spec = {"name": "fm", "embedding": 4}
student = StudentModule(make(installed(), "student", spec, context), {"click": objective})
data = DistillationDataModule(source, train=rows, history=student.history, labels=labels)
fit(student, data)

served = student.serving_module()  # backbone and main tower alone, on plain tensors
count = sum(weights.numel() for weights in served.parameters())
print(f"{type(student.student).__name__} serves {count:,} parameters")
