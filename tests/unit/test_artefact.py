"""Teachers as artefacts of the Hugging Face hub's form: what is written and read back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from artefact_cases import Saved, card, lines, make, names
from hstu_cases import SCHEMA, make_batch

from recdistill_core import __version__, artefact
from recdistill_core.artefact import load_teacher, read_card
from recdistill_core.errors import DataError, IntegrityError, PluginError, UsageError
from recdistill_hf.teacher import HFTeacher

RESTORE = "save the teacher again from its run, or copy the file"


@pytest.fixture(params=["hstu", "hf"])
def teacher(request: pytest.FixtureRequest) -> Saved:
    return make(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "teachers" / "one"


def test_a_loaded_teacher_is_the_saved_one(teacher: Saved, folder: Path) -> None:
    batch = make_batch([5, 0, 9], [(0, 5), (2, 9), (2, 3), (1, 0)])
    teacher.save_pretrained(folder)
    assert names(folder) == ["config.json", "model.safetensors"]
    assert names(folder.parent) == ["one"]
    before = torch.get_rng_state()
    found = type(teacher).from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.fingerprint() == teacher.fingerprint()
    assert found.config == teacher.config
    assert found.schema == SCHEMA
    assert not found.training
    for task, logit in teacher.score(batch).logits.items():
        assert torch.equal(found.score(batch).logits[task], logit)
    trainable = {name: part.requires_grad for name, part in teacher.named_parameters()}
    assert {name: part.requires_grad for name, part in found.named_parameters()} == trainable
    any_kind = load_teacher(str(folder))
    assert type(any_kind) is type(teacher)
    assert any_kind.fingerprint() == teacher.fingerprint()


def test_what_config_json_says(folder: Path) -> None:
    teacher = make("hstu")
    teacher.save_pretrained(folder)
    plain = card(folder)
    assert {key: plain[key] for key in ("model_type", "architectures", "format_version", "tasks")} == {
        "model_type": "recdistill-hstu",
        "architectures": ["HSTUTeacher"],
        "format_version": 1,
        "tasks": ["click", "like"],
    }
    assert plain["fingerprint"] == teacher.fingerprint()
    assert plain["recdistill_version"] == __version__
    assert plain["schema"] == SCHEMA.to_dict()
    assert plain["view"] == SCHEMA.view_hash()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        (folder / "config.json").stat().st_mode & 0o777
    }
    assert plain["config"]["leave_out"] == ["user_segment"]
    found = read_card(folder)
    assert (found.component, found.tasks, found.schema) == ("hstu", ("click", "like"), SCHEMA)


def test_the_dataset_is_noted_beside_the_rest(folder: Path) -> None:
    teacher = make("hstu")
    teacher.save_pretrained(folder)
    assert read_card(folder).dataset == ""
    artefact.note_dataset(folder, "0123abcd")
    assert read_card(folder).dataset == "0123abcd"
    assert load_teacher(folder).fingerprint() == teacher.fingerprint()
    with pytest.raises(UsageError, match=r"there is no config\.json"):
        artefact.note_dataset(folder.parent, "0123abcd")


def test_a_batch_with_other_features_is_refused(teacher: Saved) -> None:
    batch = make_batch([5], [(0, 5), (0, 3)])
    fewer = replace(batch, categorical=batch.categorical[:, :-1])
    count = len(SCHEMA.categorical)
    with pytest.raises(DataError) as caught:
        teacher.score(fewer)
    assert lines(caught) == [
        f"the batch has {count - 1} categorical features, and the teacher was built for {count}: "
        + ", ".join(feature.name for feature in SCHEMA.categorical),
        "  where: Batch.categorical",
        "  to do: build batches with the source of the dataset whose schema the teacher was built with",
    ]


def test_the_dtype_is_kept(folder: Path) -> None:
    teacher = make("hf").to(torch.bfloat16)
    teacher.save_pretrained(folder)
    found = HFTeacher.from_pretrained(folder)
    assert {part.dtype for part in found.parameters()} == {torch.bfloat16}
    assert found.fingerprint() == teacher.fingerprint()
    batch = make_batch([5, 9], [(0, 5), (1, 9)])
    assert torch.equal(found.score(batch).logits["like"], teacher.score(batch).logits["like"])


def test_large_weights_are_written_in_several_files(teacher: Saved, folder: Path) -> None:
    teacher.save_pretrained(folder, max_shard_size="4KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert names(folder) == sorted([*files, "config.json", "model.safetensors.index.json"])
    assert set(index["weight_map"]) == set(teacher.state_dict())
    assert type(teacher).from_pretrained(folder).fingerprint() == teacher.fingerprint()
    index_path, text = folder / "model.safetensors.index.json", json.dumps(index)
    index_path.unlink()
    with pytest.raises(IntegrityError, match="the index of the weights is absent, and they lie in several") as caught:
        type(teacher).from_pretrained(folder)
    assert lines(caught)[1:] == [f"  where: {index_path}", f"  to do: {RESTORE}"]
    index_path.write_text(text)
    (folder / files[1]).unlink()
    with pytest.raises(IntegrityError, match="the checkpoint cannot be read: No such file or directory") as caught:
        type(teacher).from_pretrained(folder)
    assert caught.value.where == str(folder / files[1])
    for broken in ({"weight_map": {"a": "../other.safetensors"}}, {}, []):
        (folder / "model.safetensors.index.json").write_text(json.dumps(broken))
        with pytest.raises(IntegrityError, match="the index of the weights cannot be read: ") as caught:
            type(teacher).from_pretrained(folder)
        assert caught.value.where == str(folder / "model.safetensors.index.json")


def test_a_folder_that_is_not_empty_is_left_alone(folder: Path) -> None:
    teacher, other = make("hstu"), make("hf")
    folder.mkdir(parents=True)
    teacher.save_pretrained(folder)  # empty: it may be used
    with pytest.raises(UsageError) as caught:
        other.save_pretrained(folder)
    assert lines(caught) == [
        "the folder is not empty",
        f"  where: {folder}",
        "  to do: name another folder, or replace an earlier artefact with --overwrite (overwrite=True in Python)",
    ]
    other.save_pretrained(folder, overwrite=True)
    assert load_teacher(folder).fingerprint() == other.fingerprint()
    assert names(folder.parent) == ["one"]
    (folder / "config.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        teacher.save_pretrained(folder, overwrite=True)
    assert lines(caught) == [
        "the folder holds no teacher of recdistill, and only such a folder is replaced",
        f"  where: {folder}",
        "  to do: name another folder",
    ]
    assert names(folder) == ["config.json", "model.safetensors"]


def test_a_file_in_the_folders_place_is_left_alone(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("mine")
    with pytest.raises(UsageError) as caught:
        make("hstu").save_pretrained(folder, overwrite=True)
    assert lines(caught) == [
        "this is a file, and a teacher is a folder",
        f"  where: {folder}",
        "  to do: name another folder",
    ]
    assert folder.read_text() == "mine"


@pytest.mark.parametrize("size", ["1XB", 0, -5, "0GB", "", "GB", "-1MB"])
def test_a_size_of_files_that_is_none(folder: Path, size: int | str) -> None:
    with pytest.raises(UsageError, match=f"max_shard_size must be a number of bytes above 0, got {size!r}") as caught:
        make("hstu").save_pretrained(folder, max_shard_size=size)
    assert lines(caught)[-1] == "  to do: write for example '5GB' or '500MB'"
    assert not folder.exists()


def test_a_description_that_nobody_could_load(folder: Path) -> None:
    teacher = make("hstu")
    given: dict[str, Any] = {
        "component": "hstu",
        "config": teacher.config,
        "schema": SCHEMA,
        "tasks": teacher.head.tasks,
    }
    for changes, kind, told in (
        ({"component": "hsut"}, PluginError, "no teacher is named 'hsut' (did you mean 'hstu'?)"),
        ({"component": "hf"}, UsageError, "the configuration of a teacher 'hf' is a HFConfig, not HSTUConfig("),
        ({"config": {}}, UsageError, "the configuration of a teacher 'hstu' is a HSTUConfig, not {}"),
        ({"tasks": "click"}, UsageError, "tasks must be one name or more, got 'click'"),
        ({"tasks": ()}, UsageError, "tasks must be one name or more, got ()"),
    ):
        with pytest.raises(kind, match=re.escape(told)):
            artefact.save_teacher(teacher, folder, **{**given, **changes})
    assert not folder.exists()
    artefact.save_teacher(teacher, folder, **given, max_shard_size=10**6)
    assert load_teacher(folder).fingerprint() == teacher.fingerprint()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_save_that_fails_leaves_what_was_there(
    folder: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make("hstu")
    if overwrite:
        before.save_pretrained(folder)
    write, calls = artefact.save_weights, []

    def dies(weights: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(weights, path)

    monkeypatch.setattr(artefact, "save_weights", dies)
    with pytest.raises(OSError, match="No space left"):
        make("hf").save_pretrained(folder, overwrite=overwrite, max_shard_size="4KB")
    assert len(calls) == 3
    assert names(folder.parent) == (["one"] if overwrite else [])
    if overwrite:
        assert load_teacher(folder).fingerprint() == before.fingerprint()


def test_a_move_that_fails_brings_the_earlier_one_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make("hstu")
    before.save_pretrained(folder)
    move = Path.replace

    def dies(self: Path, target: Path) -> Path:
        if target == folder and self.parent.name == ".one.part":
            raise OSError(5, "Input/output error")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(OSError, match="Input/output error"):
        make("hf").save_pretrained(folder, overwrite=True)
    assert names(folder.parent) == ["one"]
    assert load_teacher(folder).fingerprint() == before.fingerprint()
