"""Folders of teachers that are damaged or foreign: what is refused, and in which words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artefact_cases import card, change, lines, make
from safetensors.torch import load_file, save_file

from recdistill_core import __version__
from recdistill_core.artefact import load_teacher
from recdistill_core.errors import DataError, IntegrityError, PluginError, RecdistillError, UsageError
from recdistill_core.interfaces import TrainableTeacher
from recdistill_hf.teacher import HFTeacher

RESTORE = "save the teacher again from its run, or copy the file"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "teachers" / "one"


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
