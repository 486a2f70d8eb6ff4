"""Teacher and student in one's own Lightning script: ``python train_with_lightning.py [DATASET]``.

Labels and logs land beside the dataset; without one, a small feed is simulated in a temporary folder.
"""

import sys
from pathlib import Path
from tempfile import mkdtemp

from lightning.pytorch import Trainer, callbacks, loggers

from recdistill_core import BuildContext, Objective, installed, make
from recdistill_lightning import DistillationDataModule, LogitCapture, StudentModule, TeacherModule, read_labels
from recdistill_parquet.dataset_writer import write_dataset

path = Path(sys.argv[1]) if sys.argv[1:] else Path(mkdtemp(), "dataset")
if not path.exists():
    write_dataset(make(installed(), "importer", {"name": "simulator", "impressions": 6_000}).open(), path)
source = make(installed(), "source", {"name": "parquet", "path": str(path)})
store = make(installed(), "store", {"name": "parquet", "path": str(path.parent / "labels")})
context = BuildContext(source.schema, ("click",))
train, test = (0, source.num_rows * 4 // 5), (source.num_rows * 4 // 5, source.num_rows)
metrics = {name: make(installed(), "metric", name) for name in ("auc", "ne")}

# The teacher's raw logits land in the store as it trains, each one before the update on its example.
teacher = TeacherModule(make(installed(), "teacher", "hstu", context), tasks=["click"], metrics=metrics)
data = DistillationDataModule(source, train=train, test=test, history=teacher.history)
capture, logger = LogitCapture(store), loggers.CSVLogger(path.parent, "teacher")
Trainer(max_epochs=data.epochs, logger=logger, callbacks=[capture]).fit(teacher, datamodule=data)

# The student reads the store; it never calls the teacher.
labels, coverage = read_labels(source, store, capture.version, train)
objective = Objective("click", make(installed(), "strategy", "rec_distill"), make(installed(), "loss", "soft_ce"))
student = StudentModule(make(installed(), "student", "dcn", context), {"click": objective}, metrics=metrics)
data = DistillationDataModule(source, batch_epochs=4, train=train, test=test, history=student.history, labels=labels)
stop, logger = callbacks.EarlyStopping("val/auc", mode="max"), loggers.CSVLogger(path.parent, "student")
Trainer(max_epochs=data.epochs, logger=logger, callbacks=[stop]).fit(student, datamodule=data)
