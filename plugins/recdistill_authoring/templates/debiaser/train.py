"""The debiaser ``my-plugin`` in a Lightning script of one's own, on a small simulated feed."""

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
feed = {"name": "simulator", "users": 60, "impressions": 1500, "position_bias": 1.0, "propensity": "examination"}
write_dataset(make(installed(), "importer", feed).open(), home / "dataset")
source = make(installed(), "source", {"name": "parquet", "path": str(home / "dataset")})
context = BuildContext(source.schema, ("click",))
rows = (0, source.num_rows * 4 // 5)

debiaser = make(installed(), "debiaser", {"name": "my-plugin", "clip": 0.02})
objective = Objective("click", debiasers=[debiaser])
student = StudentModule(make(installed(), "student", "mlp", context), {"click": objective})
data = DistillationDataModule(source, train=rows, history=student.history)
debiaser.fit(data.training_batches(), "click")  # looks at the training rows before the first step
fit(student, data)
print(f"{type(debiaser).__name__}: {debiaser.report()}")
