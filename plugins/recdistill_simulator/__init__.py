"""A simulated feed: users, items, slates and outcomes whose true probabilities are known.

Our own model, made of standard parts: the position-based examination model (Craswell et al., WSDM 2008; Joachims et
al., WSDM 2017), latent factors with categories, and negative down-sampling as in He et al. (ADKDD 2014).

* A user likes some categories more than others. Each liking comes and goes with a period of its own (``drift``), so
  events one period ago tell of today. The feed dwells on one category for half a day, so the newest few events say
  little of the other categories: a long history knows more than a short one.
* ``click`` = examined AND attractive. ``long_view`` and ``like`` need a click.
* Every random number is a hash of (seed, purpose, row): the same configuration gives the same bytes, however the log
  is cut into batches, and a log with fewer kept rows is a subset of the log with all rows.

Traps: ``truth`` is a probability BEFORE down-sampling. A row that sampling dropped is no history event either. One
slate may show an item twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recdistill_core.component import BuildContext, Component
from recdistill_core.errors import suggest
from recdistill_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from recdistill_core.interfaces import Importer

TASKS = ("click", "long_view", "like")
PROPENSITIES = ("none", "exposure", "examination")
TRUTHS = ("observed", "relevance")


@dataclass(frozen=True)
class SimulatorConfig:
    """The size and the nature of the feed.

    Attributes:
        users, items, categories: how many there are; ``items >= categories``.
        impressions: rows shown, before down-sampling.
        history_length: mean number of events per user before the first impression (log-normal spread); 0: none.
        max_history: longest such history.
        days, history_days: time spanned by the impressions, and by the histories before them.
        slate: rows of a request; position 0 is the top.
        tasks: of ``click``, ``long_view``, ``like``. Down-sampling goes by the label of the first one.
        click_rate: mean probability that a shown item attracts, in (0, 1); clicks are fewer with ``position_bias``.
        signal: scale of all that users and items differ in; 0 makes every click the same coin.
        drift: share of a liking that comes and goes, in [0, 1].
        exploration: share of the rows whose category is drawn evenly, in (0, 1]; the rest dwell on one category.
        position_bias: eta; position p is examined with probability ``(1 / (p + 1)) ** eta``. 0: all are examined.
        keep_positive, keep_negative: probability that a row with label 1 / 0 of the first task is kept, in (0, 1].
        propensity: the column ``propensity``. ``exposure``: probability that the feed fills this slot with this item;
            ``examination``: probability that this position is looked at; ``none``: no such column.
        truth: what is kept aside. ``observed``: P(label = 1 | user, item, time, context, position) before
            down-sampling; ``relevance``: the same as if every position were examined.
        seed: any integer of at least 0.
        batch_rows: at most so many rows in a record batch (but at least one request, or one history).
    """

    users: int = 1_500
    items: int = 2_000
    categories: int = 12
    impressions: int = 60_000
    history_length: int = 80
    max_history: int = 20_000
    days: int = 14
    history_days: int = 60
    slate: int = 6
    tasks: tuple[str, ...] = ("click", "long_view")
    click_rate: float = 0.25
    signal: float = 0.8
    drift: float = 0.4
    exploration: float = 0.6
    position_bias: float = 0.0
    keep_positive: float = 1.0
    keep_negative: float = 1.0
    propensity: str = "none"
    truth: str = "observed"
    seed: int = 0
    batch_rows: int = 65_536

    def __post_init__(self) -> None:
        for name in (
            "users",
            "categories",
            "impressions",
            "max_history",
            "days",
            "history_days",
            "slate",
            "batch_rows",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("history_length", "seed", "signal", "position_bias"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("keep_positive", "keep_negative", "exploration"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if self.items < self.categories:
            raise ValueError(f"items must be at least categories ({self.categories}), got {self.items}")
        if not 0.0 < self.click_rate < 1.0:
            raise ValueError(f"click_rate must lie in (0, 1), got {self.click_rate}")
        if not 0.0 <= self.drift <= 1.0:
            raise ValueError(f"drift must lie in [0, 1], got {self.drift}")
        self._check_names()

    def _check_names(self) -> None:
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks must name at least one task, each once, got {list(self.tasks)}")
        wanted: list[tuple[str, str, tuple[str, ...]]] = [("task", task, TASKS) for task in self.tasks]
        wanted += [("propensity", self.propensity, PROPENSITIES), ("truth", self.truth, TRUTHS)]
        for what, value, known in wanted:
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}{suggest(value, known)}; use one of {', '.join(known)}")


def build(config: SimulatorConfig, context: BuildContext) -> Importer:
    """The importer; draws nothing before :meth:`open`."""
    from recdistill_simulator.importer import Simulator

    return Simulator(config)


@hookimpl
def recdistill_importers() -> list[Component]:
    """The importer ``simulator``."""
    return [
        Component(
            "simulator",
            SimulatorConfig,
            build,
            "Simulated feed with known truth, position bias, propensities and down-sampling",
            example={"users": 50, "items": 60, "impressions": 600, "history_length": 10},
            api_version=1,
        )
    ]
