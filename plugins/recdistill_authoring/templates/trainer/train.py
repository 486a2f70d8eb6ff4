"""The trainer ``my-plugin`` in a Lightning script of one's own, on a small simulated feed."""

from pathlib import Path
from tempfile import mkdtemp

from lightning.pytorch import seed_everything
from recdistill_core import BuildContext, Objective, installed, make
from recdistill_lightning import DistillationDataModule, StudentModule
from recdistill_parquet.dataset_writer import write_dataset

seed_everything(1)
home = Path(mkdtemp())
feed = {"name": "simulator", "users": 60, "items": 60, "impressions": 1500, "history_length": 10}
write_dataset(make(installed(), "importer", feed).open(), home / "dataset")
source = make(installed(), "source", {"name": "parquet", "path": str(home / "dataset")})
context = BuildContext(source.schema, ("click",))
rows = (0, source.num_rows * 4 // 5)

student = StudentModule(make(installed(), "student", "mlp", context), {"click": Objective("click")})
data = DistillationDataModule(source, train=rows, history=student.history)
trainer = make(installed(), "trainer", {"name": "my-plugin", "clip": 0.5})
trainer.fit(student, data, epochs=data.epochs, callbacks=[], out=home / "log", title="student")
print(f"{type(trainer).__name__} left {', '.join(path.name for path in (home / 'log').iterdir())}")
