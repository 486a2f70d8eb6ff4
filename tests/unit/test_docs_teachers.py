"""What the pages of the shipped teachers say of settings and methods is what these have."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields

from docs_cases import DOCS, table_of
from omegaconf import OmegaConf

from recdistill_hf.teacher import HFTeacher
from recdistill_hstu.config import ATTENTIONS, CHECKPOINTING, HSTUConfig
from recdistill_hstu.teacher import HSTUTeacher


def test_the_page_of_the_hstu_teacher_lists_every_setting_with_its_default() -> None:
    listed = table_of(DOCS / "hstu.md", "Settings")
    assert list(listed) == [entry.name for entry in fields(HSTUConfig)]
    plain = json.loads(json.dumps(asdict(HSTUConfig())))
    for name, shown in listed.items():
        assert OmegaConf.to_container(OmegaConf.create(f"v: {shown}")) == {"v": plain[name]}, name


def test_the_page_of_the_hstu_teacher_names_the_choices() -> None:
    text = (DOCS / "hstu.md").read_text()
    for key, choices in {"attention": ATTENTIONS, "checkpointing": CHECKPOINTING}.items():
        (row,) = re.findall(rf"^\| `{key}` \| (.*) \|$", text, flags=re.MULTILINE)
        assert re.findall(r"`(\w+)`", row) == list(choices), key


def test_hf_has_no_cache_of_histories_as_its_page_says() -> None:
    text = (DOCS / "hf-teacher.md").read_text()
    methods = re.findall(r"`(\w+)`", text.partition("`hf` has no ")[2].partition(", with which")[0])
    assert methods == ["encode", "extend", "score_candidates"]
    assert not [name for name in methods if hasattr(HFTeacher, name)]
    assert all(hasattr(HSTUTeacher, name) for name in methods)
