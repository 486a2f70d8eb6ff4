"""A teacher cut over several processes: ``torchrun --standalone --nproc-per-node 2 train_sharded.py DATASET``.

Every process runs this script. Labels, checkpoints and weights land beside the dataset, each written once. Started
again after it was killed, with any number of processes, it goes on from the newest checkpoint, and labels the rows from
there on. In the end the trained teacher labels the test rows, the last fifth, and the versions are printed as the
configuration of a run names them.
"""

import os
import sys
from pathlib import Path

from lightning.pytorch import Trainer, callbacks, seed_everything

from recdistill_core import BuildContext, installed, make
from recdistill_lightning import (
    DistillationDataModule,
    FSDP2Strategy,
    LogitCapture,
    TeacherModule,
    capture_after_training,
    save_full_weights,
)

path = Path(sys.argv[1])
source = make(installed(), "source", {"name": "parquet", "path": str(path)})
store = make(installed(), "store", {"name": "parquet", "path": str(path.parent / "labels")})
seed_everything(1)
teacher = make(installed(), "teacher", "hstu", BuildContext(source.schema, ("click",)))
module = TeacherModule(teacher, tasks=["click"])
cut = source.num_rows * 4 // 5
data = DistillationDataModule(source, train=(0, cut), test=(cut, source.num_rows), history=module.history)
capture = LogitCapture(store)
saved = path.parent / "checkpoints"
trainer = Trainer(
    max_epochs=data.epochs,
    accelerator="auto",
    devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    strategy=FSDP2Strategy(),
    callbacks=[capture, callbacks.ModelCheckpoint(saved, every_n_train_steps=5)],
    logger=False,
    limit_val_batches=0,
)
newest = max(saved.glob("*.ckpt"), key=lambda folder: folder.stat().st_mtime, default=None)
trainer.fit(module, datamodule=data, ckpt_path=newest)
save_full_weights(module, path.parent / "teacher.safetensors")
place = next(module.parameters()).device
tests = capture_after_training(
    module,
    (batch.to(place) for batch in data.predict_dataloader()),
    store,
    source=source,
    view=source.schema.view_hash(),
    facts={"dataset": source.snapshot_id},
    resume=True,
)
if trainer.is_global_zero and capture.committed is not None:
    print(f"version {capture.version}, {capture.committed.count} labels")
    print(f"labels: {{versions: [{capture.version}, {tests.version}], policy: any_of}}")
