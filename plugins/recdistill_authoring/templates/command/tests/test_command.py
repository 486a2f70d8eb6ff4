import json

import pytest
import torch
from recdistill_core import installed, make
from recdistill_core.cli import main
from recdistill_core.interfaces import CaptureMode


@pytest.fixture
def labels(tmp_path):
    store = make(installed(), "store", {"name": "parquet", "path": str(tmp_path / "labels")})
    writer = store.writer("v1", tasks=["click"], mode=CaptureMode.EXTERNAL, view="view", facts={})
    writer.append(torch.arange(3), {"click": torch.zeros(3)}, step=0, scored_at=0)
    writer.commit()
    return tmp_path / "labels"


def recdistill(*words):
    """Run the command in this process; 0 where it returns."""
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_it_lists_the_versions(labels, capsys):
    assert recdistill("my-plugin", labels, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == [{"version": "v1", "mode": "external", "tasks": ["click"], "labels": 3}]
    assert recdistill("my-plugin", labels) == 0
    assert "external" in capsys.readouterr().out


def test_a_folder_that_is_absent_ends_with_2(tmp_path, capsys):
    assert recdistill("my-plugin", tmp_path / "none") == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_help_says_where_it_comes_from(capsys):
    assert recdistill("--help") == 0
    unwrapped = "".join(capsys.readouterr().out.split())
    assert "[recdistill-my-plugin]" in unwrapped
