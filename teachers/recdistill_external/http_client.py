"""POST a JSON document until a sound answer comes: time limits, growing pauses, a bound on the rate."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader

from recdistill_core.errors import DataError, UsageError
from recdistill_external.config import HttpConfig

#: Statuses of a service that may answer later.
BUSY = (408, 425, 429, 500, 502, 503, 504)
MOST_BYTES = 64 * 2**20
SHOWN = 200


class Unsound(Exception):
    """An answer that is not what was asked for; another attempt may bring a sound one.

    Args:
        what: the fault. wait_s: the pause that the service asks for, or None.
    """

    def __init__(self, what: str, wait_s: float | None = None) -> None:
        super().__init__(what)
        self.wait_s = wait_s


@dataclass
class HttpClient:
    """One service.

    Attributes:
        config: where it is and how patient to be.
        sleep, clock: of the pauses, in seconds. draw: varies the pauses.
        requests, retries: sent so far, and of them further attempts.

    Raises:
        UsageError: if the variable with the secret is not set.
    """

    config: HttpConfig
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    draw: random.Random = field(default_factory=random.Random)
    requests: int = 0
    retries: int = 0

    def __post_init__(self) -> None:
        self._next = 0.0
        self._token = self._secret()
        timeout = urllib3.Timeout(connect=self.config.timeout_s, read=self.config.timeout_s)
        self._pool = urllib3.PoolManager(
            retries=False, timeout=timeout, cert_reqs="CERT_REQUIRED", ca_certs=self.config.ca_file or None
        )

    def post(self, document: Any, check: Callable[[Any], Any]) -> Any:
        """What ``check`` makes of the answer to ``document``; it raises :class:`Unsound` for one to be asked for again.

        Raises:
            DataError: after the last attempt; for a status that another attempt does not mend; and where the service
                asks for a pause that is too long.
        """
        body = json.dumps(document, allow_nan=False, default=str).encode()
        for attempt in range(1, self.config.attempts + 1):
            try:
                return check(self._once(body))
            except Unsound as error:
                if attempt == self.config.attempts:
                    raise self._error(
                        f"the service gave no sound answer in {attempt} attempts; the last one: {error}",
                        "see what ails the service, and run again: what was committed is not asked for again",
                    ) from error
                self._pause(attempt, error)
                self.retries += 1
        raise AssertionError("attempts >= 1")

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _once(self, body: bytes) -> Any:
        self._keep_rate()
        self.requests += 1
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            plain = self.config.token_header.lower() != "authorization"
            headers[self.config.token_header] = self._token if plain else f"Bearer {self._token}"
        deadline = self.clock() + self.config.timeout_s
        try:
            answer = self._pool.request(
                "POST", self.config.url, body=body, headers=headers, redirect=False, preload_content=False
            )
            try:
                text = self._body(answer, deadline)
            except BaseException:
                answer.close()  # what is left of the answer must not be read as the next one
                raise
            answer.release_conn()
        except HTTPError as error:
            raise Unsound(f"{type(error).__name__}: {self._clean(str(error))}") from error
        return self._document(answer, text)

    def _body(self, answer: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
        parts, size = [], 0
        while part := answer.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise self._error(f"an answer is longer than {MOST_BYTES:,} bytes", "lower batch_rows")
            if self.clock() > deadline:
                raise Unsound(f"the answer took longer than timeout_s = {self.config.timeout_s:g}")
        return b"".join(parts)

    def _document(self, answer: urllib3.BaseHTTPResponse, text: bytes) -> Any:
        status = answer.status
        if status in BUSY:
            wait = answer.headers.get("Retry-After")
            raise Unsound(f"status {status}", _seconds(wait) if wait else None)
        if status != 200:
            shown = self._clean(text.decode("utf-8", "replace"))[:SHOWN]  # a cut secret would not be known
            fixes = {401: "check token_env", 403: "check token_env", 404: "check url", 413: "lower batch_rows"}
            raise self._error(
                f"the service refused the request with status {status}: {shown!r}",
                fixes.get(status, "check url and the service's log; a redirection is not followed"),
            )
        try:
            return json.loads(text, parse_constant=float)
        except (ValueError, RecursionError) as error:
            raise Unsound(f"the answer of {len(text):,} bytes is no JSON: {error}") from error

    def _pause(self, attempt: int, error: Unsound) -> None:
        usual = self.config.pause_s * 2.0 ** min(attempt - 1, 60) * self.draw.uniform(0.5, 1.5)
        asked = error.wait_s or 0.0
        if asked > self.config.longest_pause_s:
            raise self._error(
                f"the service asks for a pause of {asked:,.0f} s ({error}), more than longest_pause_s = "
                f"{self.config.longest_pause_s:g}",
                "run again later, what was committed is not asked for again; or raise longest_pause_s",
            ) from error
        self.sleep(max(asked, min(usual, self.config.longest_pause_s)))

    def _keep_rate(self) -> None:
        if not self.config.requests_per_s:
            return
        now = self.clock()
        if now < self._next:
            self.sleep(self._next - now)
        self._next = max(now, self._next) + 1.0 / self.config.requests_per_s

    def _secret(self) -> str:
        try:
            token = self.config.token().strip()
        except KeyError as error:
            raise UsageError(
                f"the environment variable {self.config.token_env!r} is not set",
                where="teacher 'http', setting token_env",
                fix="put the service's secret into it",
            ) from error
        if self.config.token_env and not (token and token.isascii() and token.isprintable()):
            raise UsageError(
                f"the environment variable {self.config.token_env!r} holds no secret that a header can carry",
                where="teacher 'http', setting token_env",
                fix="put the service's secret into it, as plain text on one line",
            )
        return token

    def _clean(self, text: str) -> str:
        for secret in {self._token, json.dumps(self._token)[1:-1]} - {""}:
            text = text.replace(secret, "***")
        return text

    def _error(self, what: str, fix: str) -> DataError:
        return DataError(self._clean(what), where=self.config.url.partition("?")[0], fix=fix)


def _seconds(header: str) -> float | None:
    """Seconds of a Retry-After header, a number or a date; None where it is neither."""
    try:
        return urllib3.Retry().parse_retry_after(header)
    except (InvalidHeader, ValueError, OverflowError):
        return None
