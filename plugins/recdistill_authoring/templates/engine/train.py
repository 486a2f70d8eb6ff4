"""The engine ``my-plugin`` in a script of one's own: a job over the rows of a small simulated feed."""

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from recdistill_core import installed, make
from recdistill_parquet.dataset_writer import write_dataset


class Clicks:
    """Counts the clicks of a range of rows; it travels as a path, and opens the dataset where it arrives."""

    def __init__(self, dataset: Path) -> None:
        self.dataset = str(dataset)

    def open(self) -> Callable[[tuple[int, int]], int]:
        """Once per worker."""
        source = make(installed(), "source", {"name": "parquet", "path": self.dataset})
        label = source.column("label_click")
        return lambda rows: int(np.nansum(label[slice(*rows)]))


home = Path(mkdtemp())
feed = {"name": "simulator", "users": 60, "items": 60, "impressions": 1500, "history_length": 10}
write_dataset(make(installed(), "importer", feed).open(), home / "dataset")

engine = make(installed(), "engine", "my-plugin")
blocks = [(first, first + 100) for first in range(0, 1500, 100)]
clicks = dict(engine.run(Clicks(home / "dataset"), blocks))
print(f"{type(engine).__name__} counted {sum(clicks.values())} clicks in {len(clicks)} blocks of rows")
