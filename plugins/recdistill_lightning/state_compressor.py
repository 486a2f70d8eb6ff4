"""Learns, without any label, which few numbers of a few bits tell most of a hidden activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from recdistill_core.errors import DataError
from recdistill_lightning.states import largest_code, prefixes, require_shape


class StateCompressor(nn.Module):
    """A nested, quantised linear auto-encoder of hidden activations.

    ``[N, H]`` activations are normalised (layer norm without affine), mapped to ``width`` numbers by a linear layer and
    ``tanh``, and rounded to ``2 ** bits - 1`` levels. A linear decoder for each prefix of ``width``, ``width / 2``, ...
    numbers reconstructs the normalised activation; the loss is the sum of their mean squared errors (Matryoshka,
    arXiv 2205.13147), and gradients pass the rounding unchanged. No label enters.

    It trains itself with an Adam of its own and draws from a generator of its own: nobody else's training is moved.

    Args:
        hidden: ``H``. width: even, >= 2. bits: 2 to 8. seed: of the initial weights. lr: learning rate > 0.

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(self, hidden: int, width: int, bits: int = 4, *, seed: int = 0, lr: float = 1e-3) -> None:
        super().__init__()
        require_shape(width, bits)
        if not lr > 0:
            raise ValueError(f"lr must be > 0, got {lr}")
        self.hidden, self.width, self.bits = hidden, width, bits
        self.prefixes, self.levels = prefixes(width), largest_code(bits)
        generator = torch.Generator().manual_seed(seed)
        rows = [width, *[hidden] * len(self.prefixes)]
        columns = [hidden, *self.prefixes]
        drawn = [
            torch.randn(row, column, generator=generator) / hidden**0.5
            for row, column in zip(rows, columns, strict=True)
        ]
        self.encoder, self.decoders = nn.Parameter(drawn[0]), nn.ParameterList(drawn[1:])
        self.encoder_bias = nn.Parameter(torch.zeros(width))
        self.decoder_bias = nn.Parameter(torch.zeros(len(self.prefixes), hidden))
        self._optimizer = torch.optim.Adam(self.parameters(), lr=lr)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[N, H]`` -> ``[N, width]`` in (-1, 1), before rounding.

        Raises:
            DataError: for another ``H`` than the first batch's, or an activation that is NaN or infinite.
        """
        if hidden.shape[1:] != (self.hidden,) or not bool(torch.isfinite(hidden).all()):
            wrong = "NaN or infinite" if hidden.shape[1:] == (self.hidden,) else f"of shape {list(hidden.shape)}"
            raise DataError(
                f"a hidden activation is {wrong}; [N, {self.hidden}] finite numbers are wanted",
                where="StateCompressor",
                fix="choose another activation of the teacher, or lower its learning rate",
            )
        return torch.tanh(self._normal(hidden) @ self.encoder.T + self.encoder_bias)

    def codes(self, hidden: Tensor) -> Tensor:
        """``[N, H]`` -> ``[N, width]`` int16 codes; code / ``levels`` is the number in [-1, 1]."""
        with torch.no_grad():
            return torch.round(self(hidden) * self.levels).to(torch.int16)

    def loss(self, hidden: Tensor) -> Tensor:
        """Scalar: reconstruction errors ``[N, H]``, mean over rows and width, summed over prefixes."""
        plain = self(hidden)
        rounded = plain + (torch.round(plain * self.levels) / self.levels - plain).detach()
        wanted = self._normal(hidden)
        parts = [
            (rounded[:, :width] @ decoder.T + bias - wanted).square().mean()
            for width, decoder, bias in zip(self.prefixes, self.decoders, self.decoder_bias, strict=True)
        ]
        return torch.stack(parts).sum()

    def learn(self, hidden: Tensor) -> Tensor:
        """One step on a batch ``[N, H]``; returns its loss before the step, a scalar."""
        with torch.enable_grad():
            loss = self.loss(hidden.detach())
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships it without types
            self._optimizer.step()
        return loss.detach()

    def _normal(self, hidden: Tensor) -> Tensor:
        return layer_norm(hidden.float(), (self.hidden,))
