"""Settings of ``teacher pretrain``. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from recdistill_core.errors import suggest

ARCHITECTURES = ("hstu", "sasrec")
#: What is left out of a ranking: nothing, the events that the model was shown, or all earlier events of the user.
SEEN = ("none", "window", "all")
_CHOICES = {
    "architecture": ARCHITECTURES,
    "windows": ("all", "newest"),
    "negatives_from": ("uniform", "popularity"),
    "negatives_per": ("batch", "target"),
    "filter_seen": SEEN,
}


@dataclass(frozen=True)
class PretrainConfig:
    """How the sequence model is trained and measured. Width, layers, heads, dropout and length are the teacher's.

    Attributes:
        architecture: ``hstu`` (the teacher's own layers) or ``sasrec`` (arXiv 1808.09781).
        until: events from here on are not used: an ISO time, ms since the epoch or a share of the rows like ``80%``;
            empty: the run's first training row, or with a preset the end of the log.
        epochs: passes over the sequences, >= 1.
        batch_users: sequences of a batch, >= 1.
        windows: ``all`` cuts a long sequence into pieces of ``max_length`` events, so that every event but a user's
            first is predicted once; ``newest`` takes a user's newest piece alone, as the published runs do.
        holdout: newest events of every user that are not trained on: 0; 1, the last one is the test; or 2, the one
            before it is for validation besides.
        lr, weight_decay: of AdamW. betas: of AdamW, each in [0, 1). warmup_steps: steps from 0 to ``lr``.
        negatives: other values that a target is compared with, >= 1; a vocabulary with no more is compared whole.
        negatives_from: ``uniform`` over the vocabulary, or by ``popularity`` in the sequences.
        negatives_per: ``batch``, one draw for all targets of a batch; or ``target``, a draw for each, as published.
        log_q: take the log of the drawing probability off each logit (without effect for ``uniform``).
        temperature: logits are divided by it, > 0. normalise: logits are cosines, not plain products.
        field_weight: weight of the loss of each further event field that is on the item's side, >= 0; 0: items alone.
        input_positions: scale tokens by the root of the width and add a learnt position, as the published runs do.
        input_dropout: probability in [0, 1) with which an entry of the input is dropped in training.
        filter_seen: what a ranking leaves out: ``none``, ``window`` (what the model was shown, as published) or
            ``all`` earlier events of the user. The target is always ranked.
        evaluate_every: epochs between two rankings while training, >= 0; 0: at the end alone.
        seed: of the weights, the order and the draws, >= 0.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    architecture: str = "hstu"
    until: str = ""
    epochs: int = 4
    batch_users: int = 128
    windows: str = "all"
    holdout: int = 1
    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 0
    negatives: int = 512
    negatives_from: str = "uniform"
    negatives_per: str = "batch"
    log_q: bool = True
    temperature: float = 0.05
    normalise: bool = True
    field_weight: float = 1.0
    input_positions: bool = False
    input_dropout: float = 0.0
    filter_seen: str = "all"
    evaluate_every: int = 0
    seed: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}{suggest(value, known)}")
        for name in ("epochs", "batch_users", "negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "field_weight", "evaluate_every", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("lr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.holdout not in (0, 1, 2):
            raise ValueError(f"holdout must be 0, 1 or 2, got {self.holdout}")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {list(self.betas)}")
        if not 0.0 <= self.input_dropout < 1.0:
            raise ValueError(f"input_dropout must lie in [0, 1), got {self.input_dropout}")
