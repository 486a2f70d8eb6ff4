"""For each kind: what ``plugins new`` makes is installed by pip into a fresh environment, tested, and used by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from clean_cases import ROOT, CleanEnvironment, build_wheel, run
from omegaconf import OmegaConf

from recdistill_authoring.scaffold import KINDS, Scaffold

pytestmark = [pytest.mark.packaging, pytest.mark.slow]

#: kind -> where the resolved configuration of run.yaml names the component.
PLACES = {
    "teacher": "teacher.name",
    "student": "students[0].name",
    "loss": "loss.name",
    "debiaser": "student_debiasers[0].name",
    "strategy": "strategy.name",
    "metric": "evaluation.metrics[1].name",
    "store": "store.name",
    "source": "dataset.source.name",
    "importer": "dataset.importer.name",
    "exporter": "exporters[0].name",
    "trainer": "trainer.name",
}
#: kind -> the verb that uses the component; its name comes last.
VERBS = {
    "engine": [("labels", "backfill", "runs/first", "--block-rows", "100", "--engine")],
    "sampler": [("labels", "select", "runs/first", "--budget", "10%", "--out", "chosen.parquet", "--sampler")],
}
#: kind -> what only that component leaves in a run.
LEFT = {
    "store": "labels/labels.sqlite",
    "exporter": "**/signature.json",
    "trainer": "seed-1/teacher/log/*profile*",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("dist"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_works(kind: str, wheel: Path, tmp_path: Path) -> None:
    scaffold = Scaffold(kind, f"my-{kind}2")
    use(scaffold, scaffold.write(tmp_path), wheel)


def test_the_sample_repository_works(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "plugin-fm-student"
    shutil.copytree(
        ROOT / "examples" / home.name, home, ignore=shutil.ignore_patterns("__pycache__", "runs", ".*_cache")
    )
    use(Scaffold("student", "fm"), home, wheel)


def use(scaffold: Scaffold, home: Path, wheel: Path) -> None:
    """Install, list, test, run from YAML, run from a script: all outside this environment."""
    clean = CleanEnvironment(home.parent / "clean", [wheel, home])
    rows = {
        row["distribution"]: row for row in json.loads(run(clean.recdistill, "plugins", "list", "--json", cwd=home))
    }
    check_listed(rows[scaffold.distribution], scaffold)
    run(clean.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=home)
    run(clean.recdistill, "--strict-plugins", "run", "run.yaml", "--out", "runs/first", cwd=home)
    check_used(home / "runs" / "first", scaffold)
    if scaffold.kind == "command":
        (version,) = json.loads(run(clean.recdistill, scaffold.name, "runs/first/labels", "--json", cwd=home))
        assert version["labels"] > 0
    for words in VERBS.get(scaffold.kind, ()):
        done = json.loads(run(clean.recdistill, *words, scaffold.name, "--json", cwd=home))
        assert done.get("added", done.get("chosen")) > 0, done
    said = run(clean.python, "train.py", cwd=home)
    named = {"importer": scaffold.name, "command": "prequential"}
    assert named.get(scaffold.kind, f"{scaffold.prefix}{scaffold.kind.title()}") in said


def check_listed(row: dict[str, Any], scaffold: Scaffold) -> None:
    assert (row["name"], row["version"], row["status"], row["reason"]) == (scaffold.name, "0.1.0", "ok", "")
    named = [(entry["kind"], entry["name"]) for entry in row["components"]]
    assert named + [("command", name) for name in row["commands"]] == [(scaffold.kind, scaffold.name)]


def check_used(out: Path, scaffold: Scaffold) -> None:
    """The run was made with the component: it is named in the resolved configuration, and left what only it leaves."""
    results = json.loads((out / "metrics.json").read_text())
    assert results["data"]["test_rows"] > 0
    if scaffold.kind in PLACES:
        named = OmegaConf.select(OmegaConf.load(out / "config.yaml"), PLACES[scaffold.kind])
        # a source and a store are made by the run itself and stay as they were written
        assert named in (scaffold.name, f"{scaffold.distribution}:{scaffold.name}")
    if scaffold.kind in LEFT:
        assert list(out.glob(LEFT[scaffold.kind]))
    plugins = json.loads((out / "manifest.json").read_text())["plugins"]
    if scaffold.kind in ("teacher", "student", "loss", "strategy", "debiaser"):
        assert plugins[f"{scaffold.kind} {scaffold.name!r}"] == f"{scaffold.distribution} 0.1.0"
