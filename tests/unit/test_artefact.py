"""Teachers as artefacts of the Hugging Face hub's form: what is written, read back, and refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_cases
import hstu_cases
import pytest
import torch
from hstu_cases import SCHEMA, make_batch
from safetensors.torch import load_file, save_file

from recdistill_core import __version__, artefact
from recdistill_core.artefact import load_teacher, read_card
from recdistill_core.errors import DataError, IntegrityError, PluginError, RecdistillError, UsageError
from recdistill_core.interfaces import TrainableTeacher
from recdistill_hf.teacher import HFTeacher
from recdistill_hstu.teacher import HSTUTeacher

RESTORE = "save the teacher again from its run, or copy the file"
Saved = HSTUTeacher | HFTeacher


def make(name: str) -> Saved:
    if name == "hstu":
        return hstu_cases.make_teacher(hstu_cases.small_config(leave_out=("user_segment",)))
    options = {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 300.0}}
    return hf_cases.make_teacher(hf_cases.small_config(architecture="qwen3", kv_heads=2, options=options))


@pytest.fixture(params=["hstu", "hf"])
def teacher(request: pytest.FixtureRequest) -> Saved:
    return make(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "teachers" / "one"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def card(folder: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return plain


def change(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**card(folder), **changes}))


def lines(caught: Any) -> list[str]:
    return str(caught.value).splitlines()


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


def no_folder(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_card(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text()[:50])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def pickled(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "model.safetensors")


def with_weights(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


def with_card(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder, **changes)


def without(key: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        plain = card(folder)
        del plain[key]
        (folder / "config.json").write_text(json.dumps(plain))

    return apply


def rename(weights: dict[str, torch.Tensor]) -> None:
    weights["head.stray"] = weights.pop("head.logits.bias")


def reshape(weights: dict[str, torch.Tensor]) -> None:
    weights["head.logits.bias"] = torch.zeros(7)


def nudge(weights: dict[str, torch.Tensor]) -> None:
    weights["head.logits.bias"] += 1e-3


AGAIN = "save the teacher again, or copy all files of the artefact"


@pytest.mark.parametrize(
    ("damage", "kind", "what", "fix"),
    [
        (
            no_folder,
            UsageError,
            "there is no config.json",
            "name the folder that save_pretrained wrote; to load from a hub, download the folder first",
        ),
        (cut_card, IntegrityError, "the teacher's config.json cannot be read: ", RESTORE),
        (
            without("format_version"),
            IntegrityError,
            "the teacher's config.json is not what was written: format_version is None, no version",
            RESTORE,
        ),
        (
            with_card(format_version="x"),
            IntegrityError,
            "the teacher's config.json is not what was written: format_version is 'x', no version",
            RESTORE,
        ),
        (
            with_card(model_type="llama"),
            UsageError,
            "the folder holds no teacher of recdistill: model_type is 'llama'",
            "a decoder of transformers can initialise the hf teacher: set pretrained_decoder to its folder",
        ),
        (
            with_card(format_version=2, recdistill_version="9.1"),
            UsageError,
            f"the teacher was saved in format 2 by recdistill 9.1, and this is recdistill {__version__}, "
            "which reads formats up to 1",
            "install that version or a newer one",
        ),
        (
            without("schema"),
            IntegrityError,
            "the teacher's config.json is not what was written: 'schema' is missing",
            RESTORE,
        ),
        (
            with_card(schema={"tusks": []}),
            IntegrityError,
            "the teacher's config.json is not what was written: the dataset schema has no 'tasks'",
            RESTORE,
        ),
        (
            with_card(config={"layers": 0}),
            IntegrityError,
            "config.json describes no hstu teacher that can be built here: teacher: layers must be at least 1, got 0",
            f"use recdistill {__version__}, which wrote it, where it can run, or save the teacher again",
        ),
        (
            with_card(config={"leyers": 1}),
            IntegrityError,
            "config.json describes no hstu teacher that can be built here: teacher.leyers: unknown key "
            "(did you mean 'layers'?); teacher 'hstu' has: ",
            f"use recdistill {__version__}, which wrote it, where it can run, or save the teacher again",
        ),
        (
            no_weights,
            IntegrityError,
            "the checkpoint cannot be read: No such file or directory",
            RESTORE,
        ),
        (cut_weights, IntegrityError, "the checkpoint is damaged: ", RESTORE),
        (
            pickled,
            DataError,
            "the checkpoint is a pickle, which can run code when it is loaded",
            "save the weights with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        ),
        (
            with_weights(rename),
            IntegrityError,
            "the weights do not fit config.json: they lack head.logits.bias; they hold unknown head.stray",
            AGAIN,
        ),
        (
            with_weights(reshape),
            IntegrityError,
            "the weights do not fit config.json: they have other shapes: head.logits.bias is [7] and must be [2]",
            AGAIN,
        ),
        (
            with_weights(nudge),
            IntegrityError,
            "weights and config.json do not belong together: config.json has fingerprint ",
            AGAIN,
        ),
        (
            with_card(tasks=["like", "click"]),
            IntegrityError,
            "weights and config.json do not belong together: config.json has fingerprint ",
            AGAIN,
        ),
    ],
)
def test_what_is_damaged_or_foreign_is_refused(
    damage: Callable[[Path], None], kind: type[RecdistillError], what: str, fix: str, folder: Path
) -> None:
    make("hstu").save_pretrained(folder)
    damage(folder)
    with pytest.raises(kind, match=re.escape(what)) as caught:
        load_teacher(folder)
    assert str(caught.value.where).startswith(str(folder))
    assert lines(caught)[-1] == f"  to do: {fix}"


def test_a_teacher_of_another_component_or_of_none_is_refused(folder: Path) -> None:
    make("hstu").save_pretrained(folder)
    with pytest.raises(UsageError) as caught:
        HFTeacher.from_pretrained(folder)
    assert lines(caught) == [
        "the folder holds a teacher 'hstu', not 'hf'",
        f"  where: {folder / 'config.json'}",
        "  to do: load it with recdistill_core.artefact.load_teacher, which takes any",
    ]
    change(folder, model_type="recdistill-hsut")
    with pytest.raises(PluginError, match="no teacher is named 'hsut' \\(did you mean 'hstu'\\?\\)"):
        load_teacher(folder)


def test_a_teacher_that_cannot_be_saved_says_so(folder: Path) -> None:
    class Plain(TrainableTeacher):
        pass

    with pytest.raises(UsageError) as caught:
        Plain().save_pretrained(folder)
    assert lines(caught) == [
        "a Plain cannot be saved as an artefact",
        f"  where: {folder}",
        "  to do: implement save_pretrained with recdistill_core.artefact.save_teacher",
    ]
