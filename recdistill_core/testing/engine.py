"""Checks for engines. Their jobs do next to nothing; what counts is what comes back, when, and what stays behind."""

from __future__ import annotations

import copy
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from recdistill_core.errors import DataError, RecdistillError
from recdistill_core.interfaces import Engine, Job
from recdistill_core.testing.cases import Case, ConformanceError, check, exercise
from recdistill_core.testing.engine_jobs import CLOSED, Echo, Marks, Opens, Raises, Sums, Threads, begun

#: More blocks than an example has workers, in the check of how often a job is opened.
MANY = 64
#: Blocks of the job that is stopped early, and how many of them are over at once.
LONG, QUICK = 30, 4
#: Seconds for what was in flight to end after a close, and for workers to go.
GRACE, LEAVING = 1.0, 10.0


def answers(case: Case, made: Engine, job: Job, blocks: Sequence[Any]) -> dict[int, Any]:
    """What came back, by place; the case fails unless every block was answered once."""
    __tracebackhide__ = True
    known = range(len(blocks))
    found = list(made.run(job, blocks))
    answered = Counter(place for place, _ in found)
    for place, count in answered.items():
        case.require(
            isinstance(place, int) and place in known,
            f"answers for block {place!r}; yield its place in blocks, an int below {len(blocks)}",
        )
        case.require(count == 1, f"answers {count} times for block {place}")
    lost = [place for place in known if place not in answered]
    case.require(not lost, f"gives no answer for {len(lost)} of {len(blocks)} blocks: {lost[:3]}")
    return dict(sorted(found, key=itemgetter(0)))


def require_sums(case: Case, made: Engine, blocks: Sequence[list[int]], when: str = "") -> None:
    """Fail unless the answers of :class:`Sums` belong to their places."""
    __tracebackhide__ = True
    for place, answer in answers(case, made, Sums(), blocks).items():
        wanted = sum(blocks[place]) if blocks[place] else None
        case.require(
            answer == wanted, f"answers {answer!r} for block {place}{when}; what the job returned for it is {wanted!r}"
        )


@exercise("engine")
def run_engine(case: Case, made: Engine) -> Mapping[str, Any]:
    """Sums of small blocks."""
    found = answers(case, made, Sums(), [[place, 1] for place in range(12)])
    return {str(place): answer for place, answer in found.items()}


@check("engine")
def every_block_is_answered_once(case: Case) -> None:
    """Each block is answered once, under its own place; equal blocks and answers of None count like any other."""
    made = case.build()
    require_sums(case, made, [[place, place] for place in range(20)] + [[]] * 5 + [[3, 4]] * 15)
    require_sums(case, made, ((7, 8),), " of one")  # type: ignore[arg-type]  # a sequence of another kind


@check("engine")
def no_blocks_are_no_answers(case: Case) -> None:
    """Without a block there is no answer, no error, and no job is opened."""
    made = case.build()
    case.require(list(made.run(Echo(), [])) == [], "answers blocks that there are not")
    try:
        list(made.run(Raises(RuntimeError("the kit's job was opened")), []))
    except Exception as error:
        case.fail(f"opens a job that has no block ({error}); it may load a model for nothing")


@check("engine")
def a_job_is_opened_once_per_worker(case: Case) -> None:
    """``open`` is called for each worker and not for each block, and once where there is one block."""
    made = case.build()
    for name, blocks in {"many": MANY, "one": 1}.items():
        folder = case.folder / name
        folder.mkdir()
        answers(case, made, Opens(str(folder)), range(blocks))
        opened = len(list(folder.iterdir()))
        case.require(
            0 < opened < max(blocks, 2),
            f"opens the job {opened} times for {blocks} blocks; open it once per worker, since it may load a model, "
            "and start no more workers than there are blocks",
        )


@check("engine")
def a_worker_keeps_to_its_thread(case: Case) -> None:
    """Blocks are done in the thread that opened the job, which a connection of SQLite, for one, must not leave."""
    away = [place for place, stays in answers(case, case.build(), Threads(), range(12)).items() if not stays]
    case.require(
        not away, f"does blocks {away[:3]} in another thread than the one that opened the job; open it where they are"
    )


@check("engine")
def the_job_and_the_blocks_are_left_as_they_were(case: Case) -> None:
    """Running changes neither the job nor the blocks, and the job does see what it was made with."""
    made, job = case.build(), Echo()
    blocks: list[Any] = [{"rows": [place, place + 1]} for place in range(6)]
    before = copy.deepcopy((job, blocks))
    for place, block in answers(case, made, job, blocks).items():
        case.require(block == before[1][place], f"gives the job {block!r} for block {place}, not {before[1][place]!r}")
    case.require(job == before[0], f"changes the job: {before[0]} is {job} afterwards")
    case.require(blocks == before[1], "changes the blocks that it is given; work on a copy")


class KitError(Exception):
    """An error with a text that its arguments do not spell out."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row

    def __str__(self) -> str:
        return f"the kit's own failure in row {self.row}"


ERRORS: tuple[Exception, ...] = (
    ValueError("the kit's job fails: 100 % of it"),
    KitError(7),
    DataError("the kit's log is torn", where="kit.csv, row 7", fix="look at the row"),
)


@check("engine")
def errors_keep_their_type_and_text(case: Case) -> None:
    """What a block or ``open`` raises comes out with type and text; a RecdistillError keeps what, where and fix."""
    made = case.build()
    for error in ERRORS:
        _require_error(case, made, error, Raises(error, at=5), "a block")
    _require_error(case, made, ERRORS[-1], Raises(ERRORS[-1]), "open")


def _require_error(case: Case, made: Engine, error: Exception, job: Job, where: str) -> None:
    __tracebackhide__ = True
    told: list[tuple[int, Any]] = []
    try:
        told.extend(made.run(job, range(12)))
    except Exception as found:
        case.require(
            type(found) is type(error) and str(found) == str(error),
            f"raises {type(found).__name__} ({' '.join(str(found).split())[:200]}) where {where} raised "
            f"{type(error).__name__} ({' '.join(str(error).split())}); raise the error itself",
        )
        parts = [(found.what, found.where, found.fix)] if isinstance(found, RecdistillError) else []
        parts += [(error.what, error.where, error.fix)] if isinstance(error, RecdistillError) else []
        case.require(len(set(parts)) < 2, f"loses the parts of a {type(error).__name__}: {parts}")
    else:
        case.fail(f"says nothing where {where} raised {type(error).__name__}; it gave {len(told)} answers of 12")


@check("engine")
def closing_it_early_stops_the_work(case: Case) -> None:
    """After ``close`` no further block is begun beyond those in flight, and no process of it stays."""
    folder = case.folder / "marks"
    folder.mkdir()
    told = case.build().run(Marks(str(folder), QUICK), range(LONG))
    case.require(
        isinstance(told, Iterator) and hasattr(told, "close"),
        f"returns a {type(told).__name__} from run, which cannot be closed; make run a generator",
    )
    first = next(told)[0]
    _require_unfinished(case, folder, f"before it answers {first}, its first; yield answers as they come")
    told.close()
    (folder / CLOSED).touch()  # from now on blocks take no time, so what goes on shows
    time.sleep(GRACE)
    _require_unfinished(case, folder, "although it was closed after the first answer; stop at GeneratorExit")
    others = {process for process in begun(folder).values() if process != os.getpid()}
    left = sorted(_wait_for_end(others))
    case.require(not left, f"leaves processes of its workers behind when it is closed: {len(left)}; end them")


def _require_unfinished(case: Case, folder: Path, when: str) -> None:
    __tracebackhide__ = True
    case.require(len(begun(folder)) < LONG, f"begins all {LONG} blocks {when}")


def _wait_for_end(processes: set[int]) -> set[int]:
    """Those of ``processes`` that are still there after a while."""
    until = time.monotonic() + LEAVING
    while (left := {process for process in processes if _lives(process)}) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _lives(process: int) -> bool:
    """Whether it runs; one that has ended and was not yet asked for its exit code does not."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:
        return not Path("/proc/self").exists()  # where there is no /proc, the signal alone has to tell
    return state not in "ZX"


@check("engine")
def it_can_be_used_again(case: Case) -> None:
    """One object does one job after the other, also after an error and after it was closed early."""
    made = case.build()
    before: tuple[tuple[str, Callable[[], object]], ...] = (
        ("a job", lambda: require_sums(case, made, [[place] for place in range(3)])),
        ("a job that failed", lambda: _failed(made)),
        ("it was closed early", lambda: _closed(made)),
    )
    for name, act in before:
        act()
        try:
            require_sums(case, made, [[place, 2] for place in range(8)], f", after {name}")
        except ConformanceError:
            raise
        except Exception as error:  # whatever its library raises
            case.fail(f"cannot be used again after {name}: {type(error).__name__}: {error}")


def _failed(made: Engine) -> None:
    try:
        list(made.run(Raises(ValueError("once"), at=1), range(4)))
    except ValueError:
        return


def _closed(made: Engine) -> None:
    told = made.run(Echo(), range(6))
    next(told)
    told.close()  # type: ignore[attr-defined]  # another check demands it
