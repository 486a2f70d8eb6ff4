"""The source ``my-plugin`` in a Lightning script of one's own, on a small simulated feed."""

from pathlib import Path
from tempfile import mkdtemp

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
source = make(installed(), "source", {"name": "my-plugin", "path": str(home / "dataset"), "rows": 1000})
context = BuildContext(source.schema, ("click",))
rows = (0, source.num_rows * 4 // 5)

student = StudentModule(make(installed(), "student", "mlp", context), {"click": Objective("click")})
data = DistillationDataModule(source, train=rows, history=student.history)
fit(student, data)
print(f"{type(source).__name__} gave {source.num_rows:,} rows")
