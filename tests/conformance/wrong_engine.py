"""Engines that break their contract: the local one, or a pool of threads or processes, with one fault each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from wrong import Wrong, wrong

from recdistill_core.engine import Job
from recdistill_core.errors import DataError
from recdistill_local.engine import LocalEngine

Answers = Iterator[tuple[int, Any]]


class Local(LocalEngine):
    """Does blocks here."""


class Lossy(Local):
    """Takes an answer of None for none."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        return ((place, answer) for place, answer in super().run(job, blocks) if answer is not None)


class Doubling(Local):
    """Tells the last answer again."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        for answer in super().run(job, blocks):
            yield answer
        if len(blocks):
            yield answer


class FromOne(Local):
    """Counts blocks from 1."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        return ((place + 1, answer) for place, answer in super().run(job, blocks))


class ByBlock(Local):
    """Finds the place of an answer by its block, of which there may be two."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        for place, answer in super().run(job, blocks):
            yield blocks.index(blocks[place]), answer


class Shifted(Local):
    """Gives every answer to the block before."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        return (((place - 1) % len(blocks), answer) for place, answer in super().run(job, blocks))


class Named(Local):
    """Names blocks by text."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Any:
        return ((str(place), answer) for place, answer in super().run(job, blocks))


class Summary(Local):
    """Says at the end that it is done."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        yield from super().run(job, blocks)
        yield len(blocks), "done"


class Eager(Local):
    """Opens the job whatever there is to do."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        do = job.open()
        for place, block in enumerate(blocks):
            yield place, do(block)


class Reopening(Local):
    """Opens the job for every block."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        for place, block in enumerate(blocks):
            yield place, job.open()(block)


class Spare(Local):
    """Opens the job once more than it needs."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        if blocks:
            job.open()
        yield from super().run(job, blocks)


class Tagging(Local):
    """Notes in the job that it was run."""

    def run(self, job: Any, blocks: Sequence[Any]) -> Answers:
        yield from super().run(job, blocks)
        getattr(job, "settings", {})["done"] = True


class Emptying(Local):
    """Takes blocks off the list that it was given."""

    def run(self, job: Job, blocks: Any) -> Answers:
        yield from super().run(job, list(blocks))
        blocks.clear()


class Numbering(Local):
    """Writes the place into each block."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        return super().run(job, [{**block, "place": place} for place, block in enumerate(blocks)])


class Wrapping(Local):
    """Raises an error of its own."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        try:
            yield from super().run(job, blocks)
        except Exception as error:
            raise RuntimeError("a block has failed") from error


class Repeating(Local):
    """Makes the error again from its arguments."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        try:
            yield from super().run(job, blocks)
        except Exception as error:
            raise type(error)(str(error)) from error


class Flattening(Local):
    """Keeps the text of a data error, in one part."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        try:
            yield from super().run(job, blocks)
        except DataError as error:
            raise DataError(str(error)) from error


class Forgiving(Local):
    """Ends quietly."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        try:
            yield from super().run(job, blocks)
        except Exception:
            return


class Listing(Local):
    """Gives an iterator over a list."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        return iter(list(super().run(job, blocks[:2])))


class Collecting(Local):
    """Does all first."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        yield from list(super().run(job, blocks))


class Pooled(Local):
    """Threads that are waited for, all of them."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        do = job.open()
        with ThreadPoolExecutor(4) as pool:
            places = {pool.submit(do, block): place for place, block in enumerate(blocks)}
            for future in as_completed(places):
                yield places[future], future.result()


class Leaving(Local):
    """Leaves its only worker where it is."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        ours, theirs = multiprocessing.Pipe()
        worker = multiprocessing.get_context("fork").Process(target=serve, args=(theirs, job), daemon=True)
        worker.start()
        for place, block in enumerate(blocks):
            ours.send(block)
            yield place, ours.recv()


def serve(pipe: Any, job: Job) -> None:
    """Do what comes in, for as long as somebody might ask."""
    do = job.open()
    while pipe.poll(60):
        pipe.send(do(pipe.recv()))


class Once(Local):
    """Has one life."""

    def __init__(self) -> None:
        self.left = 1

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        if not self.left:
            raise RuntimeError("the pool is not running")
        self.left = self.spend()
        yield from super().run(job, blocks)

    def spend(self) -> int:
        return 0


class UntilClosed(Local):
    """Remembers that it was closed."""

    closed = False

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        if self.closed:
            raise RuntimeError("the pool was shut down")
        try:
            yield from super().run(job, blocks)
        except GeneratorExit:
            self.closed = True
            raise


class Remembering(Local):
    """Goes on with answers of the job before."""

    def __init__(self) -> None:
        self.told: dict[int, Any] = {}

    def run(self, job: Job, blocks: Sequence[Any]) -> Answers:
        if not self.told:
            self.told = dict(super().run(job, blocks))
        yield from ((place, self.told.get(place)) for place in range(len(blocks)))


def engine(check: str, kind: Callable[[], Any], fault: str) -> Wrong:
    return wrong(check, "engine", lambda config, context: kind(), fault)


ONCE, OPENED = "every_block_is_answered_once", "a_job_is_opened_once_per_worker"
AS_WAS, ERRORS = "the_job_and_the_blocks_are_left_as_they_were", "errors_keep_their_type_and_text"
CLOSING, AGAIN = "closing_it_early_stops_the_work", "it_can_be_used_again"
WRONG = [
    engine(ONCE, Lossy, "gives no answer for 5 of 40 blocks: [20, 21, 22]"),
    engine(ONCE, Doubling, "answers 2 times for block 39"),
    engine(ONCE, FromOne, "answers for block 40; yield its place in blocks, an int below 40"),
    engine(ONCE, ByBlock, "answers 5 times for block 20"),
    engine(ONCE, Named, "answers for block '0'; yield its place in blocks, an int below 40"),
    engine(ONCE, Shifted, "answers 2 for block 0; what the job returned for it is 0"),
    engine("no_blocks_are_no_answers", Summary, "answers blocks that there are not"),
    engine("no_blocks_are_no_answers", Eager, "opens a job that has no block (the kit's job was opened)"),
    engine(OPENED, Reopening, "opens the job 64 times for 64 blocks; open it once per worker"),
    engine(OPENED, Spare, "opens the job 2 times for 1 blocks"),
    engine("a_worker_keeps_to_its_thread", Pooled, "does blocks [0, 1, 2] in another thread than the one that opened"),
    engine(AS_WAS, Tagging, "changes the job: Echo(settings={'list': [1, 2]}) is Echo(settings={'list': [1, 2], "),
    engine(AS_WAS, Emptying, "changes the blocks that it is given; work on a copy"),
    engine(AS_WAS, Numbering, "gives the job {'rows': [0, 1], 'place': 0} for block 0, not {'rows': [0, 1]}"),
    engine(ERRORS, Wrapping, "raises RuntimeError (a block has failed) where a block raised ValueError (the kit's job"),
    engine(ERRORS, Repeating, "(the kit's own failure in row the kit's own failure in row 7) where a block raised Kit"),
    engine(ERRORS, Flattening, "loses the parts of a DataError"),
    engine(ERRORS, Forgiving, "says nothing where a block raised ValueError; it gave 5 answers of 12"),
    engine(CLOSING, Listing, "returns a list_iterator from run, which cannot be closed; make run a generator"),
    engine(CLOSING, Collecting, "begins all 30 blocks before it answers 0, its first; yield answers as they come"),
    engine(CLOSING, Pooled, "begins all 30 blocks although it was closed after the first answer"),
    engine(CLOSING, Leaving, "leaves processes of its workers behind when it is closed: 1; end them"),
    engine(AGAIN, Once, "cannot be used again after a job: RuntimeError: the pool is not running"),
    engine(AGAIN, UntilClosed, "cannot be used again after it was closed early: RuntimeError: the pool was shut down"),
    engine(AGAIN, Remembering, "answers 0 for block 0, after a job; what the job returned for it is 2"),
]
