"""What the feed shows and how users answer: rows of requests, and the histories before them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recdistill_simulator import TASKS, SimulatorConfig
from recdistill_simulator.world import DAY_MS, START_MS, SURFACES, Context, Floats, Ids, World, liking_at

#: The feed dwells on one category for so long.
DWELL_MS = DAY_MS // 2
_PILOT_ROWS = 20_000
_HISTORY_SPREAD = 1.0


@dataclass(frozen=True)
class Shown:
    """Rows ``[N]`` as they were shown and answered.

    Attributes:
        context: user, item, time and surface.
        request, position: int64.
        exposure: probability that the feed filled this slot with this item.
        labels: task -> bool. relevance: task -> P(label = 1) if the position were examined.
    """

    context: Context
    request: Ids
    position: Ids
    exposure: Floats
    labels: Mapping[str, NDArray[np.bool_]]
    relevance: Mapping[str, Floats]


def examination(slate: int, position_bias: float) -> Floats:
    """``[slate]``: probability that each position is looked at, ``(1 / (p + 1)) ** eta``."""
    return np.asarray((1.0 / np.arange(1, slate + 1)) ** position_bias, dtype=np.float64)


class Feed:
    """Shows items to the users of a world. Draws by row number, so it can start anywhere."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self.world = World(config)
        self.chance = self.world.chance
        self.examined = examination(config.slate, config.position_bias)
        self.requests = -(-config.impressions // config.slate)
        pilot = np.arange(_PILOT_ROWS)
        user = self._whose("pilot user", pilot)
        time = START_MS + (self.chance.uniform("pilot time", pilot) * config.days * DAY_MS).astype(np.int64)
        item, _ = self._fill("pilot", user, time, pilot)
        self.world.calibrate(Context(user, item, time, self._surface("pilot", pilot)))

    def impressions(self) -> Iterator[Shown]:
        """All rows in time order, before down-sampling, at most ``batch_rows`` at a time."""
        step = max(1, self.config.batch_rows // self.config.slate)
        for start in range(0, self.requests, step):
            yield self._requests(np.arange(start, min(start + step, self.requests)))

    def kept(self, shown: Shown) -> NDArray[np.bool_]:
        """``[N]``: rows that the down-sampling by the first task's label keeps."""
        row = shown.request * self.config.slate + shown.position
        label = shown.labels[self.config.tasks[0]]
        rate = np.where(label, self.config.keep_positive, self.config.keep_negative)
        return np.asarray(self.chance.uniform("keep", row) < rate, dtype=bool)

    def histories(self) -> Iterator[Shown]:
        """Events before the first impression, whole users at a time, oldest first within a user."""
        lengths = self.history_lengths()
        ends = np.cumsum(lengths)
        start = 0
        while start < len(lengths):
            done = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + self.config.batch_rows, side="right")))
            yield self._past(np.arange(start, stop), lengths[start:stop])
            start = stop

    def history_lengths(self) -> Ids:
        """``[users]`` events of each user before the first impression; none is above ``max_history``."""
        rng, config = self.chance.generator("history"), self.config
        spread = rng.lognormal(-0.5 * _HISTORY_SPREAD**2, _HISTORY_SPREAD, size=config.users)
        return np.minimum(config.max_history, np.rint(config.history_length * spread)).astype(np.int64)

    def _requests(self, request: Ids) -> Shown:
        config = self.config
        share = (request + self.chance.uniform("time", request)) / self.requests
        time = START_MS + (share * config.days * DAY_MS).astype(np.int64)
        user, surface = self._whose("user", request), self._surface("surface", request)
        row = (request[:, None] * config.slate + np.arange(config.slate)).ravel()
        row = row[row < config.impressions]
        place = row // config.slate - request[0]
        position = row % config.slate
        return self._show("row", row, position, user[place], time[place], surface[place])

    def _past(self, users: Ids, lengths: Ids) -> Shown:
        """Event ``j`` of a user has the random numbers of row ``user << 32 | j``."""
        user = np.repeat(users, lengths)
        place = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        row = user << 32 | place
        share = (place + self.chance.uniform("past time", row)) / np.repeat(lengths, lengths)
        time = START_MS - 1 - ((1.0 - share) * self.config.history_days * DAY_MS).astype(np.int64)
        position = (self.chance.uniform("past position", row) * self.config.slate).astype(np.int64)
        return self._show("past", row, position, user, time, self._surface("past surface", row))

    def _show(self, purpose: str, row: Ids, position: Ids, user: Ids, time: Ids, surface: Ids) -> Shown:
        item, exposure = self._fill(purpose, user, time, row)
        context = Context(user, item, time, surface)
        chances = self.world.probabilities(context)
        labels: dict[str, NDArray[np.bool_]] = {}
        relevance: dict[str, Floats] = {}
        seen = self.chance.uniform(f"{purpose} examined", row) < self.examined[position]
        for task in TASKS:
            drawn = self.chance.uniform(f"{purpose} {task}", row) < chances[task]
            given = task == "click"
            labels[task] = drawn & (seen if given else labels["click"])
            relevance[task] = chances[task] * (1.0 if given else relevance["click"])
        return Shown(context, row // self.config.slate, position, exposure, labels, relevance)

    def _fill(self, purpose: str, user: Ids, time: Ids, row: Ids) -> tuple[Ids, Floats]:
        """Items ``[N]`` for slots, and the probability ``[N]`` of each item in its slot."""
        config, items = self.config, self.world.items
        focus = self._focus(user, time // DWELL_MS)
        even = self.chance.uniform(f"{purpose} explore", row) < config.exploration
        any_category = (self.chance.uniform(f"{purpose} category", row) * config.categories).astype(np.int64)
        category = np.where(even, any_category, focus)
        reach = category + self.chance.uniform(f"{purpose} item", row)
        item = np.minimum(np.searchsorted(items.reach, reach, side="right"), items.last[category])  # sums are rounded
        of_category = config.exploration / config.categories + (1.0 - config.exploration) * (category == focus)
        return item, np.asarray(of_category * items.share[item], dtype=np.float64)

    def _focus(self, user: Ids, dwell: Ids) -> Ids:
        """``[N]``: the category a user's feed dwells on, drawn in proportion to ``exp(liking)`` (Gumbel maximum)."""
        pair, which = np.unique(user << 20 | dwell, return_inverse=True)
        owner, moment = pair >> 20, (pair & ((1 << 20) - 1))
        category = np.arange(self.config.categories)
        time = (moment * DWELL_MS)[:, None]
        liking = liking_at(self.world.users, owner[:, None], category, time, self.config.drift)
        noise = self.chance.uniform("focus", owner[:, None], moment[:, None], category)
        choice = np.argmax(liking - np.log(-np.log(np.maximum(noise, 1e-300))), axis=1)
        return np.asarray(choice[which], dtype=np.int64)

    def _whose(self, purpose: str, place: Ids) -> Ids:
        drawn = np.searchsorted(self.world.users.activity, self.chance.uniform(purpose, place), side="right")
        return np.minimum(drawn, self.config.users - 1)

    def _surface(self, purpose: str, place: Ids) -> Ids:
        return (self.chance.uniform(f"{purpose} surface", place) * SURFACES).astype(np.int64)
