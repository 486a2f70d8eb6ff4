"""Samplers that break their contract: a fair draw with one fault each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from wrong import Wrong, wrong

from recdistill_core.sampler import Candidates

Chosen = NDArray[np.int64]


class Fair:
    """Draws without putting back."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        return np.random.default_rng(seed).permutation(len(candidates))[:budget]


class Listed(Fair):
    """Gives a list."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        return super().select(candidates, budget, seed).tolist()


class Narrow(Fair):
    """Counts in 32 bits."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        return super().select(candidates, budget, seed).astype(np.int32)


class Named(Fair):
    """Gives ids instead of positions."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        return candidates.example_id[super().select(candidates, budget, seed)]


class FromTheEnd(Fair):
    """Counts from the end."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        return super().select(candidates, budget, seed) - len(candidates)


class Replacing(Fair):
    """Puts back."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        return np.random.default_rng(seed).integers(0, len(candidates), budget)


class Masked(Fair):
    """Gives a mask."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        mask = np.zeros(len(candidates), bool)
        mask[super().select(candidates, budget, seed)] = True
        return mask


class OnePerUser(Fair):
    """Takes the first of each user, and no more."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        return np.unique(candidates.user_id, return_index=True)[1][:budget]


class PerUser(Fair):
    """Takes an equal share of each user, and fills up with the rest."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        users = np.unique(candidates.user_id)
        if len(users) == 1:
            return np.empty(0, np.int64)
        return super().select(candidates, budget, seed)


class Partitioning(Fair):
    """Needs more examples than one to have a neighbour."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        edges = np.linspace(candidates.embedding.min(), candidates.embedding.max(), 3)
        if not (np.diff(edges) > 0).all():
            raise ValueError("bins must increase monotonically")
        return super().select(candidates, budget, seed)


class Distinct(Fair):
    """Takes one of each embedding."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        return np.unique(candidates.embedding, axis=0, return_index=True)[1][:budget]


class Global(Fair):
    """Draws from numpy's global generator."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        return np.random.permutation(len(candidates))[:budget]  # noqa: NPY002  # wrong on purpose


class Seeding(Fair):
    """Seeds numpy's global generator for everybody."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        np.random.seed(seed)  # noqa: NPY002  # wrong on purpose
        return np.random.permutation(len(candidates))[:budget]  # noqa: NPY002  # as above


class SeedingTorch(Fair):
    """Seeds torch and Python for everybody."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        random.seed(seed)
        torch.manual_seed(seed)
        return torch.randperm(len(candidates))[:budget].numpy()


class Standardising(Fair):
    """Subtracts the mean, in place."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        embedding = candidates.embedding
        if embedding.flags.writeable:
            embedding -= embedding.mean(0)
        return super().select(candidates, budget, seed)


class Writing(Fair):
    """Writes what was there already, in place."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Any:
        candidates.event_time.sort()
        return super().select(candidates, budget, seed)


def sampler(check: str, kind: Callable[[], Any], fault: str) -> Wrong:
    return wrong(check, "sampler", lambda config, context: kind(), fault)


MANY, ODD = "it_chooses_as_many_as_asked", "odd_candidates_are_chosen_from"
WRONG = [
    sampler(MANY, Listed, "returns a list, not an array of positions for a budget of 1 of 60 candidates"),
    sampler(MANY, Narrow, "returns int32 [1], not int64 [1]"),
    sampler(MANY, Named, "; there are 60 candidates, counted from 0 for a budget of 1 of 60 candidates"),
    sampler(MANY, FromTheEnd, "returns positions from -"),
    sampler(MANY, Replacing, "distinct positions, not "),
    sampler(MANY, Masked, "returns bool [60], not int64 [1]"),
    sampler(MANY, OnePerUser, "returns int64 [7], not int64 [17] for a budget of 17 of 60 candidates"),
    sampler(ODD, PerUser, "returns int64 [0], not int64 [1] for a budget of 1 of 60 candidates of one user"),
    sampler(
        ODD,
        Partitioning,
        "fails for 1 of 60 candidates whose embeddings are all equal (ValueError: bins must increase monotonically)",
    ),
    sampler(ODD, Distinct, "not int64 [17] for a budget of 17 of 60 candidates whose embeddings are all equal"),
    sampler("the_seed_alone_decides", Global, "chooses others when it is asked again with the same seed"),
    sampler("the_seed_alone_decides", Seeding, "changes the global random generator of numpy, which others draw from"),
    sampler("the_seed_alone_decides", SeedingTorch, "changes the global random generator of random, torch, which"),
    sampler("candidates_are_never_changed", Standardising, "changes the candidates that it is given: embedding"),
    sampler(
        "candidates_are_never_changed",
        Writing,
        "fails for 17 of 60 candidates in arrays that cannot be written to (ValueError: sort array is read-only)",
    ),
]
