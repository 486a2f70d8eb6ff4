"""Configuration of the ``hf`` teacher. No torch and no transformers here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recdistill_hstu.config import BACKENDS as JAGGED_BACKENDS
from recdistill_hstu.config import check_names, check_sequence

#: Architectures whose logits are tested to be those of the plain transformers model, one row at a time.
ARCHITECTURES = ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3")
BACKENDS = (*JAGGED_BACKENDS, "padded")


@dataclass(frozen=True)
class HFConfig:
    """Which decoder the teacher runs, and how large it is.

    Attributes:
        architecture: a ``model_type`` of transformers: gemma, gpt2, gpt_neox, llama, mistral, olmo2, phi, phi3, qwen2
            or qwen3.
        layers: decoder layers, >= 1.
        width: ``D``, width of a token, >= 1; an even multiple of ``heads``.
        heads: attention heads, >= 1.
        kv_heads: heads of keys and values, a divisor of ``heads``; 0: as many as ``heads``.
        intermediate: inner width of the decoder's MLPs, >= 0; 0: four times ``width``.
        dropout: probability in [0, 1) with which entries of the decoder's inputs and outputs are dropped in training.
            Logits that are captured while training carry this noise, hence 0 by default.
        max_length: most events that a row sees, >= 1.
        history_stride: events between two starts of a window, in [1, max_length]; see ``HistoryWindow``.
        attend_recent: most of the newest events that a token attends to, >= 0; 0: all that it sees.
        attend_oldest: how many of the oldest events it attends to besides, >= 0; needs ``attend_recent``.
        backend: a jagged backend of ``recdistill_hstu`` (``auto``, ``chunked``, ``sdpa``, ``xformers``, ...), or
            ``padded``: transformers' own attention with a mask for each history, padded to the longest of a group.
        added_action: add an embedding of the action code to each event token; a candidate never has one.
        time_gap: add an embedding of the time since the event before; position ids do not tell hours from months.
        checkpointing: compute a layer's activations again in the backward pass instead of keeping them.
        pretrained_decoder: folder of a transformers model (config.json and safetensors) whose weights the decoder
            starts from; empty: random weights. Nothing is ever downloaded.
        options: further settings of the transformers configuration, such as ``{"rms_norm_eps": 1e-5}``.
        context_width: width of one categorical feature's embedding in the head, >= 1.
        leave_out: names of categorical features that the head does not read, such as a user id.
        hidden: widths of the head's hidden layers, each >= 1.
        cross_layers: cross layers (DCN-v2) in the head, >= 0.
        cross_rank: rank of a cross layer's matrix, >= 0; 0 takes a full matrix.
        score_budget: ``chunked``: most attention scores, heads included, held at a time; ``padded``: most entries of a
            group's mask. At least 1; it bounds memory and changes no result beyond rounding.
    """

    architecture: str = "llama"
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 0
    intermediate: int = 0
    dropout: float = 0.0
    max_length: int = 256
    history_stride: int = 64
    attend_recent: int = 0
    attend_oldest: int = 0
    backend: str = "auto"
    added_action: bool = True
    time_gap: bool = True
    checkpointing: bool = False
    pretrained_decoder: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    context_width: int = 16
    leave_out: tuple[str, ...] = ()
    hidden: tuple[int, ...] = (256, 128)
    cross_layers: int = 2
    cross_rank: int = 64
    score_budget: int = 1 << 20

    def __post_init__(self) -> None:
        zero = ("kv_heads", "intermediate", "attend_recent", "attend_oldest", "cross_layers", "cross_rank")
        check_sequence(self, zero)
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be an even multiple of heads, got width {self.width} and heads {self.heads}: "
                "rotary position embeddings turn pairs of entries"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads, got kv_heads {self.kv_heads} and heads {self.heads}")
        check_names(self, {"architecture": ARCHITECTURES, "backend": BACKENDS})
