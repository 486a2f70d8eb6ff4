"""Students that tell other embeddings of ids than those that are trained, each in one way."""

from __future__ import annotations

from model_cases import GoodStudent
from torch import Tensor
from wrong_student import fails


class Raises(GoodStudent):
    """Knows the embeddings of items alone."""

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        return {"item": self.features.categorical.of("item", ids)}[kind]


class Flat(GoodStudent):
    """Sums an embedding up."""

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        return ids.float().requires_grad_()


class Numbers(GoodStudent):
    """Gives the ids themselves."""

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        return ids[:, None]


class Copied(GoodStudent):
    """Gives a copy."""

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        found = self.features.categorical.of(kind, ids)
        return None if found is None else found.detach()


class Centred(GoodStudent):
    """Centres the embeddings that are asked for."""

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        found = self.features.categorical.of(kind, ids)
        return None if found is None else found - found.mean(0)


EMBEDDINGS = "id_embeddings_are_one_per_id"

WRONG = [
    fails(EMBEDDINGS, Raises, "cannot tell embeddings of kind"),
    fails(EMBEDDINGS, Flat, "gives embeddings [13] of 13 ids of kind 'item'; give [13, W]"),
    fails(EMBEDDINGS, Numbers, "gives torch.int64 embeddings of kind 'item'"),
    fails(EMBEDDINGS, Copied, "without gradient; return those that are trained"),
    fails(EMBEDDINGS, Centred, "another embedding among other ids"),
]
