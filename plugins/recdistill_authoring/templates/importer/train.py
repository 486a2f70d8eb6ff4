"""The importer ``my-plugin`` in a Lightning script of one's own, on a small log."""

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
log = {"name": "my-plugin", "path": str(Path(__file__).with_name("sample.jsonl"))}
write_dataset(make(installed(), "importer", log).open(), home / "dataset")
source = make(installed(), "source", {"name": "parquet", "path": str(home / "dataset")})
context = BuildContext(source.schema, ("click",))
rows = (0, source.num_rows * 4 // 5)

student = StudentModule(make(installed(), "student", "mlp", context), {"click": Objective("click")})
data = DistillationDataModule(source, train=rows, history=student.history)
fit(student, data)
print(f"my-plugin gave {source.num_rows:,} rows")
