"""The ``hf`` teacher as a whole: plain transformers as its reference, configuration, batches at the edge, training."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_cases import make_teacher, small_config
from hstu_cases import SCHEMA, make_batch
from safetensors.torch import load_file, save_file
from test_hstu_teacher import run_python
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

from recdistill_core.batch import Batch
from recdistill_core.component import BuildContext
from recdistill_core.errors import ConfigError, DataError, IntegrityError
from recdistill_core.interfaces import HistoryWindow, Teacher, TrainableTeacher
from recdistill_hf import HFConfig, recdistill_teachers
from recdistill_hf.config import ARCHITECTURES, BACKENDS
from recdistill_hf.encode import encode_packed, encode_padded
from recdistill_hf.teacher import HFTeacher, time_gaps
from recdistill_hstu.attention import prepare
from recdistill_hstu.config import HSTUConfig
from recdistill_hstu.layout import Layout, Span

ROWS = [(0, 5), (2, 9), (2, 3), (1, 0), (2, 0), (3, 17), (3, 30)]
ONE_KEY_PER_HEAD = ("gpt2", "gpt_neox")


@pytest.fixture
def batch() -> Batch:
    return make_batch([5, 0, 9, 30], ROWS)


def of(architecture: str, **changes: Any) -> HFConfig:
    shared = {} if architecture in ONE_KEY_PER_HEAD else {"kv_heads": 2}
    return small_config(architecture=architecture, **{**shared, **changes})


def message(caught: Any) -> str:
    return str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_row_is_what_plain_transformers_says_of_it_alone(architecture: str, batch: Batch, tmp_path: Path) -> None:
    """The decoder's own saved form, run by transformers alone on one row's events and candidate."""
    packed, padded = (make_teacher(of(architecture, backend=kind)).eval() for kind in ("chunked", "padded"))
    packed.decoder.save_pretrained(tmp_path / "decoder")
    plain = AutoModel.from_pretrained(tmp_path / "decoder", attn_implementation="eager")
    layout = Layout.of(batch)
    with torch.no_grad():
        x = packed.tokens(batch) + packed.gap(time_gaps(layout))
        softmax = HSTUConfig(width=16, heads=4, attention="softmax", position_bias=False, time_bias=False)
        found = encode_packed(packed.decoder, x, layout, prepare("chunked", layout, softmax))
        expected = torch.empty_like(found)
        for row, (owner, end) in enumerate(ROWS):
            begin, place = int(layout.offsets[owner]), layout.num_events + row
            sequence = torch.cat([x[begin : begin + end], x[place : place + 1]])
            alone = plain(inputs_embeds=sequence[None]).last_hidden_state[0]
            expected[begin : begin + end], expected[place] = alone[:-1], alone[-1]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for budget in (1, 1000, 1 << 20):
            torch.testing.assert_close(encode_padded(padded.decoder, x, layout, budget), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("span", [Span(), Span(4, 2)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_backends_agree_with_gradients(architecture: str, span: Span, batch: Batch) -> None:
    found: list[list[Tensor]] = []
    for backend in ("reference", "chunked", "sdpa", "padded"):
        ends = {"attend_recent": span.recent, "attend_oldest": span.oldest}
        teacher = make_teacher(of(architecture, backend=backend, **ends))
        logit = teacher.training_scores(batch).logits["click"]
        logit.square().sum().backward()
        weights = dict(teacher.named_parameters())
        found.append([logit.detach(), *(part.grad for part in weights.values() if part.requires_grad)])
        assert all(part.grad is not None for part in weights.values() if part.requires_grad)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)


def test_component_builds_from_its_example() -> None:
    (component,) = recdistill_teachers()
    assert component.needs_of(HFConfig()) == {"history"}
    teacher = component.build(component.config(**component.example), BuildContext(SCHEMA, ("like",)))
    assert isinstance(teacher, TrainableTeacher)
    assert isinstance(teacher, Teacher)
    assert teacher.history == HistoryWindow(64, 16)
    assert teacher.describe() == {"architecture": "llama", "backend": "sdpa"}
    assert list(teacher.score(make_batch([3], [(0, 2)])).logits) == ["like"]
    assert component.build(small_config(), BuildContext(SCHEMA)).head.tasks == SCHEMA.tasks


def test_hook_module_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, recdistill_hf; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert run_python(code) == "False False"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"score_budget": 0}, "score_budget must be at least 1, got 0"),
        ({"intermediate": -1}, "intermediate must be at least 0, got -1"),
        (
            {"width": 12, "heads": 4},
            "width must be an even multiple of heads, got width 12 and heads 4: "
            "rotary position embeddings turn pairs of entries",
        ),
        ({"kv_heads": 3}, "kv_heads must divide heads, got kv_heads 3 and heads 4"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"history_stride": 257}, "history_stride must lie in [1, max_length = 256], got 257"),
        ({"attend_oldest": 4}, "attend_oldest needs attend_recent, without which all events are attended to; got 4"),
        ({"hidden": (8, 0)}, "hidden must hold widths of at least 1, got [8, 0]"),
        (
            {"architecture": "lama"},
            f"architecture must be one of {', '.join(ARCHITECTURES)}; got 'lama' (did you mean 'llama'?)",
        ),
        (
            {"backend": "paded"},
            f"backend must be one of {', '.join(BACKENDS)}; got 'paded' (did you mean 'padded'?)",
        ),
    ],
)
def test_ranges_of_the_configuration(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        HFConfig(**changes)
    assert message(caught) == expected


def test_an_option_reaches_the_decoder_and_one_that_may_not_is_refused() -> None:
    rope = {"rope_theta": 500.0}
    config = small_config(architecture="qwen3", options={"rope_parameters": rope, "head_dim": 6, "rms_norm_eps": 1e-3})
    made = make_teacher(config).decoder.config
    assert (made.rope_parameters["rope_theta"], made.rope_parameters["rope_type"]) == (500.0, "default")
    assert (made.head_dim, made.rms_norm_eps) == (6, 1e-3)
    batch = make_batch([5], [(0, 5)])
    padded = make_teacher(replace(config, backend="padded")).score(batch).logits["click"]
    torch.testing.assert_close(make_teacher(config).score(batch).logits["click"], padded, rtol=1e-5, atol=1e-5)
    options = {"rms_norm_epz": 1e-3, "sliding_window": 4, "rope_parameters": {"rope_type": "dynamic"}}
    with pytest.raises(ConfigError) as caught:
        make_teacher(small_config(architecture="gpt2", kv_heads=2, options={"n_layer": 3}))
    assert caught.value.problems == (
        "teacher.options.n_layer: is no setting of gpt2 that may be changed here; there are activation_function, "
        "embd_pdrop, initializer_range, layer_norm_epsilon, resid_pdrop",
        "teacher.kv_heads: gpt2 has keys for every head: leave it 0 or 4",
    )
    with pytest.raises(ConfigError) as caught:
        make_teacher(small_config(architecture="llama", options=options))
    assert [problem.path for problem in caught.value.problems] == [
        "teacher.options.rms_norm_epz",
        "teacher.options.sliding_window",
        "teacher.options.rope_parameters",
    ]
    first, _, last = caught.value.problems
    assert "is no setting of llama that may be changed here (did you mean 'rms_norm_eps'?); there are " in first
    assert last.message == (
        "rope_type must be one of default, linear, llama3, yarn, got 'dynamic': with others the length of one history "
        "would move the logits of another"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"head_dim": 3}, "teacher.options.head_dim: must be an even number of at least 2, got 3"),
        (
            {"attention_bias": 2},
            "teacher.options: transformers refuses the settings: Validation error for field 'attention_bias': "
            "TypeError: Field 'attention_bias' expected bool, got int (value: 2)",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            'teacher.options: transformers refuses the settings: "Missing required keys in `rope_parameters` for '
            "'rope_type'='yarn': {'factor'}\"",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_teacher(small_config(options=options))
    assert caught.value.problems == (expected,)


def test_schema_without_events_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        HFTeacher(small_config(), replace(SCHEMA, events=()), SCHEMA.tasks)
    assert caught.value.problems == (
        "teacher: hf needs history, and the dataset has no events; import the log with events",
    )


def test_history_longer_than_max_length_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        make_teacher(small_config(max_length=8)).score(make_batch([9], [(0, 2)]))
    assert message(caught).splitlines() == [
        "a history of 9 events reached a teacher of max_length 8",
        "  where: Batch.history.offsets",
        "  to do: ask the source for batches with teacher.history, or raise max_length",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="xformers may serve it here")
def test_a_backend_that_cannot_serve_is_refused() -> None:
    with pytest.raises(ConfigError, match="xformers: it needs a CUDA device"):
        make_teacher(small_config(backend="xformers", heads=2))


@pytest.mark.parametrize("backend", ["chunked", "padded"])
def test_rows_without_any_history(batch: Batch, backend: str) -> None:
    teacher = make_teacher(small_config(backend=backend))
    blind = make_batch([0, 0, 0, 0], [(owner, 0) for owner, _ in ROWS])
    blind = replace(batch, history=blind.history)
    none = replace(batch, history=None)
    found = torch.stack(list(teacher.score(blind).logits.values()))
    torch.testing.assert_close(torch.stack(list(teacher.score(none).logits.values())), found)
    assert bool(torch.isfinite(found).all())
    assert teacher.score(batch.rows(torch.arange(0))).logits["click"].shape == (0,)
    assert teacher.score(none.rows(torch.arange(0))).logits["click"].shape == (0,)
    sum(value.sum() for value in teacher.training_scores(none).logits.values()).backward()


@pytest.mark.parametrize("backend", ["chunked", "padded", "reference", "sdpa"])
def test_every_weight_has_a_gradient_where_no_row_has_history(backend: str) -> None:
    teacher = make_teacher(small_config(backend=backend))  # one of several processes may have such rows alone
    teacher.training_scores(make_batch([0, 0], [(0, 0), (1, 0)])).logits["click"].sum().backward()
    assert [name for name, part in teacher.named_parameters() if part.requires_grad and part.grad is None] == []


def test_time_gaps_are_those_to_the_newest_event_before() -> None:
    batch = make_batch([3, 0, 2], [(0, 3), (0, 1), (1, 0), (2, 2)])
    assert batch.history is not None
    time = torch.tensor([0, 2000, 2000, 50_000, 10**13])
    history = replace(batch.history, events={**batch.history.events, "time": time})
    event_time = torch.tensor([2000 + 10**6, 500, 7, 10**13 + 3000])
    # ln(2) / 0.301 = 2.3, ln(1000) / 0.301 = 22.9, ln(1e10) / 0.301 = 76.5, ln(3) / 0.301 = 3.6
    assert time_gaps(Layout.of(replace(batch, history=history, event_time=event_time))).tolist() == [
        *(129, 2, 0, 129, 76),
        *(22, 0, 129, 3),
    ]


def test_dropout_acts_in_training_only(batch: Batch) -> None:
    teacher = make_teacher(small_config(dropout=0.5))
    first, second = (teacher.training_scores(batch).logits["click"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(teacher.score(batch).logits["click"], teacher.score(batch).logits["click"])


@pytest.mark.parametrize("backend", ["chunked", "padded"])
def test_checkpointing_changes_no_logit_and_no_gradient(batch: Batch, backend: str) -> None:
    found = []
    for checkpointing in (False, True):
        teacher = make_teacher(small_config(backend=backend, checkpointing=checkpointing)).train()
        calls: list[int] = []
        teacher.decoder.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        logit = teacher.training_scores(batch).logits["click"]
        logit.sum().backward()
        assert len(calls) == 1 + checkpointing
        found.append([logit.detach(), *(part.grad for part in teacher.parameters() if part.requires_grad)])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-6)


def test_fingerprint_is_equal_across_processes_and_changes_with_any_part() -> None:
    teacher = make_teacher(small_config())
    code = "import hf_cases as c; print(c.make_teacher(c.small_config()).fingerprint())"
    assert run_python(code) == teacher.fingerprint()
    prints = {
        teacher.fingerprint(),
        make_teacher(small_config(), seed=1).fingerprint(),
        make_teacher(small_config(dropout=0.1)).fingerprint(),
        make_teacher(small_config(architecture="mistral")).fingerprint(),
    }
    with torch.no_grad():
        teacher.decoder.norm.weight[0] += 1e-6
    assert len(prints | {teacher.fingerprint()}) == 5


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_training_learns_from_the_history_and_repeats_under_a_seed(architecture: str) -> None:
    batch = make_batch([6] * 40, [(history, 6) for history in range(40)], seed=3)
    assert batch.history is not None
    target = (batch.history.events["action"].view(40, 6)[:, -3] % 2).float()

    def train() -> Tensor:
        torch.manual_seed(0)
        teacher = HFTeacher(small_config(architecture=architecture), SCHEMA, SCHEMA.tasks)
        optimiser = torch.optim.Adam(teacher.parameters(), lr=0.03)
        for _ in range(25):
            loss = functional.binary_cross_entropy_with_logits(teacher.training_scores(batch).logits["click"], target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert float(loss.detach()) < 0.3
        return loss.detach()

    assert torch.equal(train(), train())


def test_autocast_in_bfloat16_stays_near(batch: Batch) -> None:
    teacher = make_teacher(small_config(kv_heads=2))
    exact = teacher.score(batch).logits["click"]
    with torch.autocast("cpu", torch.bfloat16):
        found = teacher.score(batch).logits["click"]
    assert not torch.equal(found.float(), exact)
    torch.testing.assert_close(found.float(), exact, rtol=0.1, atol=0.15)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_a_decoder_starts_from_a_local_folder(architecture: str, batch: Batch, tmp_path: Path) -> None:
    config = of(architecture)
    before = make_teacher(replace(config, max_length=64, history_stride=8))
    before.decoder.save_pretrained(tmp_path / "decoder")
    after = HFTeacher(replace(config, pretrained_decoder=str(tmp_path / "decoder")), SCHEMA, SCHEMA.tasks)
    assert after.config.pretrained_decoder == ""
    for name, part in after.decoder.named_parameters():
        if part.requires_grad:  # all but the vocabulary
            assert torch.equal(part, before.decoder.get_parameter(name)[: len(part)]), name
    assert bool(torch.isfinite(after.score(batch).logits["click"]).all())


def test_another_decoder_or_a_broken_folder_is_refused(tmp_path: Path) -> None:
    def start(**changes: Any) -> HFTeacher:
        return HFTeacher(small_config(pretrained_decoder=str(tmp_path / "decoder"), **changes), SCHEMA, SCHEMA.tasks)

    folder = tmp_path / "decoder"
    with pytest.raises(ConfigError) as caught:
        start()
    assert caught.value.problems == (
        f"teacher.pretrained_decoder: {folder} has no config.json; name the folder of a local model",
    )
    make_teacher(small_config()).decoder.save_pretrained(folder)
    with pytest.raises(ConfigError) as caught:
        start(layers=3, options={"rms_norm_eps": 1e-5})
    assert caught.value.problems == (
        f"teacher.pretrained_decoder: {folder} holds another decoder: num_hidden_layers is 2 there and 3 here; "
        "rms_norm_eps is 1e-06 there and 1e-05 here",
    )
    with pytest.raises(ConfigError) as caught:
        start(architecture="mistral", layers=3)
    assert caught.value.problems == (
        f"teacher.pretrained_decoder: {folder} holds a llama, and teacher.architecture is mistral",
    )
    weights = folder / "model.safetensors"
    whole = load_file(weights)
    del whole["layers.1.mlp.up_proj.weight"]
    save_file(whole, weights, {"format": "pt"})
    with pytest.raises(IntegrityError) as broken:
        start()
    again = [f"  where: {folder}", "  to do: save the model again with save_pretrained, as safetensors"]
    assert message(broken).splitlines() == ["the decoder lacks weights: layers.1.mlp.up_proj.weight", *again]
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(IntegrityError, match="the decoder cannot be read: ") as broken:
        start()
    assert message(broken).splitlines()[1:] == again


def test_a_table_of_positions_that_is_too_short_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    config = of("gpt2", max_length=20)
    make_teacher(config).decoder.save_pretrained(folder)
    with pytest.raises(ConfigError) as caught:
        HFTeacher(replace(config, max_length=30, pretrained_decoder=str(folder)), SCHEMA, SCHEMA.tasks)
    assert caught.value.problems == (
        f"teacher.pretrained_decoder: {folder} knows 21 positions, and max_length + 1 = 31 occur",
    )
