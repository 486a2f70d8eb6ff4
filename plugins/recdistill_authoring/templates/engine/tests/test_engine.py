import threading

import pytest

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.engine import MyPluginEngine


class Meeting:
    """Each block waits for another one to be in work."""

    def __init__(self, parties):
        self.barrier, self.opened = threading.Barrier(parties), []

    def open(self):
        self.opened.append(threading.get_ident())

        def do(block):
            self.barrier.wait(timeout=60)
            return block * block

        return do


def test_blocks_are_done_side_by_side():
    job, engine = Meeting(3), MyPluginEngine(MyPluginConfig(workers=3))
    assert dict(engine.run(job, range(12))) == {place: place * place for place in range(12)}
    assert len(set(job.opened)) == len(job.opened) == 3


def test_there_are_no_more_threads_than_blocks():
    job, engine = Meeting(2), MyPluginEngine(MyPluginConfig(workers=8))
    assert len(list(engine.run(job, range(2)))) == 2
    assert len(job.opened) == 2


def test_workers_have_a_range():
    with pytest.raises(ValueError, match="workers must be >= 1, got 0"):
        MyPluginConfig(0)
