"""Tokens of a jagged batch through a decoder: as one row without padding, or padded with a mask for each history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recdistill_hstu.attention import Attend
from recdistill_hstu.layout import Layout


def encode_packed(decoder: Any, x: Tensor, layout: Layout, attend: Attend) -> Tensor:
    """``[T, D]`` tokens -> ``[T, D]``: one row for the decoder, whose attention layers call ``attend``."""
    if not len(x):
        return x
    out = decoder(inputs_embeds=x[None], position_ids=layout.position[None], use_cache=False, attend=attend)
    encoded: Tensor = out.last_hidden_state[0]
    return encoded


def encode_padded(decoder: Any, x: Tensor, layout: Layout, budget: int) -> Tensor:
    """``[T, D]`` tokens -> ``[T, D]``: a row per history, its events first and its candidates behind them.

    A history of ``L`` events and ``C`` candidates takes a mask of ``(L + C) ** 2`` entries; histories of similar
    ``L + C`` share a call while their masks have at most ``budget`` entries. For checking and for short histories.
    """
    parts, places = [], []
    for token, real in _groups(layout, budget):
        mask = _mask(layout, token, real)
        out = decoder(inputs_embeds=x[token], position_ids=layout.position[token], use_cache=False, attention_mask=mask)
        parts.append(out.last_hidden_state[real])
        places.append(token[real])
    if not parts:
        return x
    return torch.cat(parts).index_select(0, torch.cat(places).argsort())


def _groups(layout: Layout, budget: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``(token [B, S], real [B, S] bool)``: tokens by history; padded places repeat the first token."""
    order = layout.history.argsort(stable=True)  # events come before candidates, and stay so within a history
    counts = torch.bincount(layout.history, minlength=1)
    start = counts.cumsum(0) - counts
    members: list[int] = []
    for history in counts.argsort(descending=True, stable=True).tolist():
        if not counts[history]:
            break
        if members and (len(members) + 1) * int(counts[members[0]]) ** 2 > budget:
            yield _rows(order, start, counts, members)
            members = []
        members.append(history)
    if members:
        yield _rows(order, start, counts, members)


def _rows(order: Tensor, start: Tensor, counts: Tensor, members: list[int]) -> tuple[Tensor, Tensor]:
    here = torch.arange(int(counts[members[0]]), device=order.device)
    real = here < counts[members][:, None]
    return order[start[members][:, None] + torch.where(real, here, 0)], real


def _mask(layout: Layout, token: Tensor, real: Tensor) -> Tensor:
    """``[B, 1, S, S]`` bool: a token sees events that the layout lets it see, and itself."""
    event = real & (token < layout.num_events)
    place = torch.where(event, layout.position[token], layout.longest)[:, None, :]
    seen = layout.span.has(place, layout.visible[token][:, :, None]) & event[:, None, :]
    itself = torch.eye(token.shape[1], dtype=torch.bool, device=token.device)
    return (seen | itself)[:, None]
