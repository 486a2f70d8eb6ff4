"""Who the users are, what the items are, and how likely each outcome is.

Memory: ``users * (3 * categories + 11)`` and ``items * 15`` floats. Nothing here grows with the number of impressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recdistill_simulator import SimulatorConfig
from recdistill_simulator.chance import Chance

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

START_MS = 1_704_067_200_000  # 2024-01-01 00:00 UTC, the first impression
DAY_MS, HOUR_MS = 86_400_000, 3_600_000
SURFACES = 3
_WIDTH = 8
_ITEMS_PER_CREATOR = 8
_LENGTH_EDGES = np.array([-1.5, -0.75, 0.0, 0.75, 1.5])
#: Conditional rates given a click, by task.
_GIVEN_CLICK = {"long_view": 0.5, "like": 0.12}


@dataclass(frozen=True)
class Users:
    """``liking``, ``phase``, ``period`` ``[U, K]`` (days); ``taste [U, 8]``; ``bias``, ``pace``, ``segment [U]``.

    ``activity [U]`` is the running sum of the users' shares of the requests, ending at 1.
    """

    liking: NDArray[np.float32]
    phase: NDArray[np.float32]
    period: NDArray[np.float32]
    taste: Floats
    bias: Floats
    pace: Floats
    segment: Ids
    activity: Floats


@dataclass(frozen=True)
class Items:
    """Items sorted by category: ``look [I, 8]``, and ``[I]`` each of the rest.

    ``share`` is an item's part of its category's impressions; ``reach`` is its category plus the running sum of shares
    within it: the item drawn is the first whose ``reach`` exceeds ``category + uniform``. ``last [K]`` is each
    category's last item.
    """

    category: Ids
    creator: Ids
    look: Floats
    quality: Floats
    depth: Floats
    length: Floats
    length_bucket: Ids
    share: Floats
    reach: Floats
    last: Ids


@dataclass(frozen=True)
class Context:
    """Per row ``[N]``: int64 ``user``, ``item``, ``time`` (ms UTC) and ``surface``."""

    user: Ids
    item: Ids
    time: Ids
    surface: Ids


def make_users(config: SimulatorConfig, chance: Chance) -> Users:
    """The users; a user's likings are few and strong (an exponential spread)."""
    rng = chance.generator("users")
    shape = (config.users, config.categories)
    taste = rng.normal(size=(config.users, _WIDTH)) / np.sqrt(_WIDTH)
    activity = rng.lognormal(0.0, 0.8, size=config.users)
    return Users(
        liking=(rng.exponential(1.0, size=shape) - 1.0).astype(np.float32),
        phase=rng.uniform(0, 2 * np.pi, size=shape).astype(np.float32),
        period=rng.uniform(5.0, 20.0, size=shape).astype(np.float32),
        taste=taste,
        bias=rng.normal(0, 0.5, size=config.users),
        pace=rng.normal(0, 0.7, size=config.users),
        segment=np.asarray(np.argmax(taste[:, :4], axis=1), dtype=np.int64),
        activity=np.cumsum(activity) / activity.sum(),
    )


def make_items(config: SimulatorConfig, chance: Chance) -> Items:
    """The items; popularity within a category follows Zipf's law with exponent 0.8."""
    rng, count = chance.generator("items"), config.items
    category = np.sort(np.arange(count) % config.categories)
    creator = category * count + rng.integers(0, max(1, count // config.categories // _ITEMS_PER_CREATOR), size=count)
    centre = rng.normal(size=(config.categories, _WIDTH))
    makers, maker = np.unique(creator, return_inverse=True)
    skill = rng.normal(0, 0.4, size=len(makers))
    first = np.searchsorted(category, np.arange(config.categories))
    weight = (1.0 + np.arange(count) - first[category]) ** -0.8
    share = np.asarray(weight / np.bincount(category, weight)[category], dtype=np.float64)
    before = np.cumsum(share) - share
    length = rng.normal(size=count)
    return Items(
        category=category,
        creator=creator,
        look=centre[category] * 0.6 + rng.normal(size=(count, _WIDTH)) * 0.8,
        quality=skill[maker] + rng.normal(0, 0.5, size=count),
        depth=rng.normal(size=count),
        length=length,
        length_bucket=np.searchsorted(_LENGTH_EDGES, length),
        share=share,
        reach=category + (before - before[first][category]) + share,
        last=np.append(first[1:], count) - 1,
    )


def liking_at(users: Users, user: Ids, category: Ids, time: Ids, drift: float) -> Floats:
    """How much users like categories at times; broadcasts. Variance 1 over users, for every ``drift`` in [0, 1]."""
    days = (time - START_MS) / DAY_MS
    swing = np.sqrt(2.0) * np.sin(2 * np.pi * days / users.period[user, category] + users.phase[user, category])
    still = users.liking[user, category]
    return np.asarray(np.sqrt(1.0 - drift) * still + np.sqrt(drift) * swing, dtype=np.float64)


class World:
    """Users, items and the probabilities of outcomes. Intercepts are set so that the mean rates are as configured."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self.chance = Chance(config.seed)
        self.users = make_users(config, self.chance)
        self.items = make_items(config, self.chance)
        self.intercept: dict[str, float] = {}

    def calibrate(self, pilot: Context) -> None:
        """Set the intercepts on a pilot sample of the feed."""
        terms = self._terms(pilot)
        self.intercept["click"] = solve_intercept(terms["click"], np.ones(len(pilot.user)), self.config.click_rate)
        attracted = _sigmoid(self.intercept["click"] + terms["click"])
        for task, rate in _GIVEN_CLICK.items():
            self.intercept[task] = solve_intercept(terms[task], attracted, rate)

    def probabilities(self, rows: Context) -> dict[str, Floats]:
        """``click``: P(attractive) ``[N]``; ``long_view``, ``like``: P(outcome | click) ``[N]``."""
        return {task: _sigmoid(self.intercept[task] + term) for task, term in self._terms(rows).items()}

    def _terms(self, rows: Context) -> dict[str, Floats]:
        users, items, user, item = self.users, self.items, rows.user, rows.item
        liking = liking_at(users, user, items.category[item], rows.time, self.config.drift)
        match = np.tanh(2.0 * np.einsum("nd,nd->n", users.taste[user], items.look[item]))
        misfit = (items.length[item] - users.pace[user]) ** 2
        evening = np.cos(2 * np.pi * (rows.time % DAY_MS / DAY_MS - 20 / 24))
        click = 1.3 * liking + 1.0 * match + 0.9 * items.quality[item] - 0.35 * misfit + users.bias[user]
        click += 0.2 * evening + 0.3 * (rows.surface - 1.0)
        long_view = 0.8 * liking + 0.8 * match * items.depth[item] + 0.5 * items.depth[item] - 0.5 * items.length[item]
        like = 0.9 * liking + 0.7 * items.quality[item] + 0.8 * users.bias[user]
        scale = self.config.signal
        return {"click": scale * click, "long_view": scale * long_view, "like": scale * like}


def solve_intercept(term: Floats, weight: Floats, rate: float) -> float:
    """The ``b`` for which the weighted mean of ``sigmoid(b + term)`` is ``rate``, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if np.average(_sigmoid(middle + term), weights=weight) < rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _sigmoid(value: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(value, -60.0, 60.0))), dtype=np.float64)
