"""A small dataset, files of scores and a scoring service that fails as it is told."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from dataset_cases import START, log

from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.registry import installed
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset

ROWS = 60
VERSION = "v1"


def source_in(folder: Path, rows: int = ROWS, **changed: Any) -> ParquetSource:
    """A dataset of ``rows`` impressions with example ids 100, 101, ..., every key of its own."""
    number = np.arange(rows)
    columns = {
        "ex": number + 100,
        "user_id": [("ann", "bob", "cyd")[n % 3] for n in number],
        "item_id": number % 7 + 40,
        "event_time": START + number * 1000,
        "genre": [("rock", "jazz")[n % 2] for n in number],
        "price": number / 10,
        "click": number % 4 == 0,
        "like": number % 5 == 0,
        "watch_time": number * 0.5,
    }
    plain = {name: np.asarray(values).tolist() for name, values in columns.items()}
    plain |= {name: [int(value) for value in plain[name]] for name in ("click", "like")}
    write_dataset(log(plain, example_id="ex", **changed), folder)
    return ParquetSource(folder)


def context_of(source: ParquetSource, tasks: tuple[str, ...] = ("click",)) -> BuildContext:
    return BuildContext(source.schema, tasks, source)


def teacher_of(source: ParquetSource, name: str, tasks: tuple[str, ...] = ("click",), **settings: Any) -> Any:
    """A teacher by its name, as a run builds it."""
    return make(installed(), "teacher", {"name": name, **settings}, context_of(source, tasks))


def write_table(path: Path, columns: Mapping[str, Any]) -> str:
    """A file of scores, CSV or Parquet by its name."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return str(path)


def logit_of(example: int) -> float:
    """What the service's model thinks of an example, exact in float32."""
    return (example * 37 % 64) / 16 - 2


Fault = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers with the model's logits, unless the server's plan says to fail."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            self.server.requests.append({"asked": asked, "headers": dict(self.headers)})
            fault = self.server.plan(len(self.server.requests))
        answer = self.server.answer(asked)
        if fault is None:
            with self.server.guard:
                self.server.scored.update(row["id"] for row in asked["rows"])
            self.reply(200, answer)
        else:
            fault(self, answer)

    def reply(self, status: int, document: Any, **headers: str) -> None:
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def answer_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    ids = [row["id"] for row in asked["rows"]]
    return {"version": VERSION, "ids": ids, "scores": {task: [logit_of(one) for one in ids] for task in asked["tasks"]}}


def status(code: int, **headers: str) -> Fault:
    return lambda handler, answer: handler.reply(code, {"error": "not now"}, **headers)


def torn(handler: Handler, answer: dict[str, Any]) -> None:
    text = json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text[: len(text) // 2])
    handler.close_connection = True


def slow(handler: Handler, answer: dict[str, Any]) -> None:
    handler.server.stopped.wait(2.0)
    handler.close_connection = True


def dripping(handler: Handler, answer: dict[str, Any]) -> None:
    text = json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    for place in range(len(text)):
        handler.wfile.write(text[place : place + 1])
        handler.wfile.flush()
        if handler.server.stopped.wait(0.05):
            return


def hangs_up(handler: Handler, answer: dict[str, Any]) -> None:
    handler.close_connection = True


def no_json(handler: Handler, answer: dict[str, Any]) -> None:
    handler.reply(200, b"<html>busy</html>")


def changed(change: Callable[[dict[str, Any]], Any]) -> Fault:
    """An answer that ``change`` has changed in place, or replaced."""

    def fault(handler: Handler, answer: dict[str, Any]) -> None:
        found = change(answer)
        handler.reply(200, answer if found is None else found)

    return fault


def shuffled(answer: dict[str, Any]) -> None:
    answer["ids"].reverse()
    answer["scores"] = {task: values[::-1] for task, values in answer["scores"].items()}


def short(answer: dict[str, Any]) -> None:
    answer["ids"].pop()
    answer["scores"] = {task: values[:-1] for task, values in answer["scores"].items()}


def few_scores(answer: dict[str, Any]) -> None:
    answer["scores"] = {task: values[:-1] for task, values in answer["scores"].items()}


RETRIED: Mapping[str, Fault] = {
    "429": status(429, Retry_After="0"),
    "503": status(503),
    "torn": torn,
    "hangs up": hangs_up,
    "no json": no_json,
    "shuffled": changed(shuffled),
    "short": changed(short),
    "few scores": changed(few_scores),
}


class Service:
    """A running service on this machine.

    Attributes:
        url: where. requests: what was asked, in order. scored: how often each row was answered soundly.
        plan: the fault of the n-th request, from 1, or None. answer: what a sound answer says.
    """

    def __init__(self) -> None:
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.plan, server.answer = (lambda number: None), answer_of
        server.requests, server.scored, server.guard = [], Counter(), threading.Lock()
        server.stopped = threading.Event()
        self.server = server
        self.url = f"http://127.0.0.1:{server.server_port}/score"
        self.thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.requests
        return found

    @property
    def scored(self) -> Counter[int]:
        found: Counter[int] = self.server.scored
        return found

    def fail(self, *faults: Fault | None) -> None:
        """The first requests from now on meet these faults, in order."""
        start = len(self.requests)
        plan = dict(enumerate(faults, start + 1))
        self.server.plan = plan.get

    def fail_at_random(self, seed: int, share: float) -> None:
        """A share of the requests meets one of the faults that another attempt mends."""
        draw, faults = random.Random(seed), list(RETRIED.values())
        self.server.plan = lambda number: draw.choice(faults) if draw.random() < share else None

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Settings of the teacher ``http`` that ask this service, with little patience."""
        plain = {"url": self.url, "version": VERSION, "scale": "logit", "fields": [], "batch_rows": 8, "pause_s": 0.001}
        return {**plain, "timeout_s": 5.0, **changes}


@contextmanager
def serving() -> Iterator[Service]:
    """A service for the time of a block."""
    service = Service()
    try:
        yield service
    finally:
        service.server.stopped.set()
        service.server.shutdown()
        service.server.server_close()
        service.thread.join()


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return when something holds; AssertionError where it never does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
