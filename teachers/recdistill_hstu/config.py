"""Configuration of the HSTU teacher. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recdistill_core.errors import suggest

ATTENTIONS = ("silu", "softmax")
CHECKPOINTING = ("none", "selective", "full")
BACKENDS = ("auto", "reference", "chunked", "sdpa", "triton", "xformers")


@dataclass(frozen=True)
class HSTUConfig:
    """How large the teacher is and how it attends.

    Attributes:
        layers: number of HSTU layers, >= 1.
        width: ``D``, width of a token, >= 1 and a multiple of ``heads``.
        heads: attention heads, >= 1; all heads of a layer share its relative bias.
        dropout: probability in [0, 1) with which a layer drops entries of ``U * LayerNorm(A V)`` in training. Logits
            that are captured while training carry this noise, hence 0 by default.
        max_length: most events that a row sees, >= 1; also the constant ``n`` by which SiLU attention divides.
        history_stride: events between two starts of a window, in [1, max_length - keep_oldest]; see
            ``HistoryWindow``.
        keep_oldest: of a history that is longer than ``max_length``, how many of the oldest events a row sees beside
            the newest ones, in [0, max_length); 0: the newest alone.
        attend_recent: most of the newest events that a token attends to, >= 0; 0: all that it sees (``K1`` of
            ULTRA-HSTU's semi-local mask).
        attend_oldest: how many of the oldest events it attends to besides, >= 0; needs ``attend_recent`` (``K2``).
        truncate_layers: ``N2`` of ULTRA-HSTU's attention truncation, in [0, layers): so many of the last layers compute
            the newest ``truncate_length`` events alone.
        truncate_length: ``L'``, most events that a row sees in those layers, in [1, max_length] where there are any,
            else 0. Rows of a user share an encoding per half of it.
        stochastic_length: ``alpha`` of HSTU's stochastic length, in (1, 2]: in training long histories are thinned at
            random, so that attention over what the oldest row of a history sees costs up to twice
            ``max_length ** alpha`` in expectation; 0: never. Logits that are captured while training come from thinned
            histories then.
        stochastic_balance: thin so that attention over what oldest rows see costs each rank of a distributed run the
            same; needs ``stochastic_length``.
        checkpointing: what the backward pass of a layer finds: ``none``, all activations; ``selective``, the layer's
            input and what attention gave, and the rest is computed again; ``full``, the input alone.
        attention: ``silu`` (the paper) or ``softmax``.
        backend: ``auto``, ``reference`` (slow, for tests), ``chunked`` (any device), ``sdpa`` (softmax, any device),
            ``triton`` (silu, CUDA) or ``xformers`` (softmax without biases, CUDA).
        position_bias: add ``w_pos[distance]`` to the attention scores.
        time_bias: add ``w_time[bucket(seconds between the two)]`` to the attention scores.
        added_action: add an embedding of the action code to each event token; a candidate never has one.
        context_width: width of one categorical feature's embedding in the head, >= 1.
        leave_out: names of categorical features that the head does not read, such as a user id: what its history
            says of a user generalises where an id's own weights over-fit.
        hidden: widths of the head's hidden layers, each >= 1.
        cross_layers: cross layers (DCN-v2) in the head, >= 0.
        cross_rank: rank of a cross layer's matrix, >= 0; 0 takes a full matrix.
        score_budget: most attention scores (heads included) that ``chunked`` holds at a time, >= 1. It bounds memory
            and changes no result beyond rounding.
    """

    layers: int = 2
    width: int = 64
    heads: int = 4
    dropout: float = 0.0
    max_length: int = 256
    history_stride: int = 64
    keep_oldest: int = 0
    attend_recent: int = 0
    attend_oldest: int = 0
    truncate_layers: int = 0
    truncate_length: int = 0
    stochastic_length: float = 0.0
    stochastic_balance: bool = False
    checkpointing: str = "none"
    attention: str = "silu"
    backend: str = "auto"
    position_bias: bool = True
    time_bias: bool = True
    added_action: bool = True
    context_width: int = 16
    leave_out: tuple[str, ...] = ()
    hidden: tuple[int, ...] = (256, 128)
    cross_layers: int = 2
    cross_rank: int = 64
    score_budget: int = 1 << 20

    def __post_init__(self) -> None:
        check_sequence(self, ("attend_recent", "attend_oldest", "keep_oldest", "cross_layers", "cross_rank"))
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width {self.width} and heads {self.heads}")
        if not 0 <= self.truncate_layers < self.layers:
            raise ValueError(f"truncate_layers must lie in [0, layers = {self.layers}), got {self.truncate_layers}")
        lowest, highest = (1, self.max_length) if self.truncate_layers else (0, 0)
        if not lowest <= self.truncate_length <= highest:
            raise ValueError(
                f"truncate_length must lie in [{lowest}, {highest}] with truncate_layers {self.truncate_layers} and "
                f"max_length {self.max_length}, got {self.truncate_length}"
            )
        if self.stochastic_length and not 1.0 < self.stochastic_length <= 2.0:
            raise ValueError(f"stochastic_length must be 0 or lie in (1, 2], got {self.stochastic_length}")
        if self.stochastic_balance and not self.stochastic_length:
            raise ValueError("stochastic_balance needs stochastic_length, got stochastic_length 0")
        check_names(self, {"attention": ATTENTIONS, "backend": BACKENDS, "checkpointing": CHECKPOINTING})


def check_sequence(config: Any, zero: Sequence[str]) -> None:
    """The ranges of the settings that every teacher over sequences has.

    Args:
        config: of the teacher. zero: names of its settings that are at least 0.

    Raises:
        ValueError: for the first one that is out of its range.
    """
    for names, least in ((("layers", "width", "heads", "max_length", "context_width", "score_budget"), 1), (zero, 0)):
        for name in names:
            if getattr(config, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {config.dropout}")
    oldest = config.keep_oldest if "keep_oldest" in zero else 0
    most = config.max_length - oldest
    if not 1 <= config.history_stride <= most:
        shown = "max_length" + (" - keep_oldest" if oldest else "")
        raise ValueError(f"history_stride must lie in [1, {shown} = {most}], got {config.history_stride}")
    if config.attend_oldest and not config.attend_recent:
        raise ValueError(
            f"attend_oldest needs attend_recent, without which all events are attended to; got {config.attend_oldest}"
        )
    if any(width < 1 for width in config.hidden):
        raise ValueError(f"hidden must hold widths of at least 1, got {list(config.hidden)}")


def check_names(config: Any, known: Mapping[str, Sequence[str]]) -> None:
    """Settings that name one of several things. Raises ValueError for the first that names none of ``known``."""
    for name, choices in known.items():
        value = getattr(config, name)
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}{suggest(value, choices)}")
