import json

import pytest
import torch
from recdistill_core import Batch, BuildContext, Schema, installed, make
from recdistill_core.errors import IntegrityError, UsageError
from recdistill_core.schema import Categorical
from recdistill_core.serving import largest_difference

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.exporter import MyPluginExporter

SCHEMA = Schema(tasks=("click",), categorical=(Categorical("tab", "tab"),), numeric=("age",), vocabularies={"tab": 4})
EXPORTER = MyPluginExporter(MyPluginConfig())


def batch(rows):
    ids = torch.arange(rows)
    return Batch(ids, ids, ids, ids, ids, ids[:, None] - 1, torch.linspace(-1, 1, rows)[:, None])


@pytest.fixture(scope="module")
def student():
    spec = {"name": "mlp", "embedding": 2, "hidden": [4], "recent": 0}
    return make(installed(), "student", spec, BuildContext(SCHEMA, ("click",)))


def test_what_is_loaded_equals_the_module_for_any_number_of_rows(student, tmp_path):
    module = student.serving_module(student.tower())
    EXPORTER.export(module, student.inputs(batch(3)), tmp_path / "served")
    loaded = EXPORTER.load(tmp_path / "served")
    for rows in (1, 3, 50):
        assert largest_difference(module, loaded, student.inputs(batch(rows))) <= EXPORTER.tolerance
    with pytest.raises(UsageError, match="the model takes categorical, numeric, got numeric"):
        loaded({"numeric": batch(3).numeric.numpy()})


def test_the_signature_says_what_to_feed(student, tmp_path):
    EXPORTER.export(student.serving_module(student.tower()), student.inputs(batch(3)), tmp_path / "served")
    signature = json.loads((tmp_path / "served" / "signature.json").read_text())
    assert signature["inputs"]["categorical"] == {"dtype": "int64", "shape": ["rows", 1]}
    assert signature["logits"] == ["click"]


def test_a_damaged_folder_is_named(tmp_path):
    with pytest.raises(IntegrityError, match="the exported model cannot be read"):
        EXPORTER.load(tmp_path)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_tolerance_has_a_range(tolerance):
    with pytest.raises(ValueError, match="tolerance must be > 0"):
        MyPluginConfig(tolerance)
