"""What the components are tried out on: files of scores, and a stand-in for a scoring service."""

from __future__ import annotations

import functools
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "2026-11-01"


def write_scores(folder: Path) -> dict[str, Any]:
    """Scores of both tasks of the conformance kit's sample examples; the settings that read them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = list(range(999, 2_000))
    columns = {f"logit_{task}": [chance(task, n)[1] for n in ids] for task in ("click", "like")}
    pq.write_table(pa.table({"example_id": ids, **columns}), folder / "scores.parquet")
    return {"path": str(folder / "scores.parquet"), "scale": "logit"}


def settings_of(url: str) -> dict[str, Any]:
    """Settings for the stand-in, which is told nothing but the ids and the times of the rows."""
    return {
        "url": url,
        "version": VERSION,
        "scale": "probability",
        "fields": ["event_time"],
        "batch_rows": 10,
        "pause_s": 0.01,
    }


def chance(task: str, number: int) -> tuple[float, float]:
    """A made-up probability of an example, and its logit."""
    logit = math.sin(number * (1.0 + len(task)))
    return 1.0 / (1.0 + math.exp(-logit)), logit


class _Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ids = [row["id"] for row in asked["rows"]]
        scores = {task: [chance(task, number)[0] for number in ids] for task in asked["tasks"]}
        text = json.dumps({"version": VERSION, "ids": ids, "scores": scores}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@functools.cache
def service_url() -> str:
    """Address of a stand-in on this machine, started at the first call; it ends with the process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Service)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/score"
