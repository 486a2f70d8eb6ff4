"""Settings of the external teachers. No torch here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SCALES = ("probability", "logit")
INVALID = ("refuse", "skip")
TIME_UNITS = ("ms", "us", "s", "iso")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ValueRules:
    """What the scores of somebody else mean, and which of them are taken.

    Attributes:
        scale: ``probability``, in [0, 1], or ``logit``, before the sigmoid and within +-40.
        clip: probabilities are moved into [clip, 1 - clip]; 0: none is, and 0 and 1, whose logits are infinite, are
            invalid. Only for probabilities.
        invalid: ``refuse`` raises at a value that is no score of this scale; ``skip`` leaves its row without a label.
    """

    scale: str
    clip: float = 0.0
    invalid: str = "refuse"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be {' or '.join(SCALES)}, got {self.scale!r}")
        if not 0.0 <= self.clip < 0.5:
            raise ValueError(f"clip must lie in [0, 0.5), got {self.clip}")
        if self.clip and self.scale == "logit":
            raise ValueError(f"clip is about probabilities, and scale is logit; leave it out, got {self.clip}")
        if self.invalid not in INVALID:
            raise ValueError(f"invalid must be {' or '.join(INVALID)}, got {self.invalid!r}")


@dataclass(frozen=True)
class ScoresFileConfig:
    """Scores in Parquet or CSV files.

    Attributes:
        path: a file, or a pattern such as ``scores/*.parquet``; all files of one format, CSV with a header.
        scale, clip, invalid: see :class:`ValueRules`.
        key: what identifies a row, as ``{column of the dataset: column of the file}``: ``example_id`` alone, or any of
            ``user_id``, ``item_id``, ``event_time`` and categorical features, with the raw values of the log. Empty:
            ``example_id`` by that name.
        scores: ``{task: column}``; a task that is not named has the column ``<scale>_<task>``.
        time_unit: of ``event_time`` in the file, where it is no timestamp: ``ms``, ``us`` or ``s`` since the epoch, or
            ``iso`` (UTC where no zone is given).
        delimiter: of CSV files; empty: found out.
        memory_limit: bound on what sorting and joining may use.
    """

    path: str
    scale: str
    clip: float = 0.0
    invalid: str = "refuse"
    key: dict[str, str] = field(default_factory=dict)
    scores: dict[str, str] = field(default_factory=dict)
    time_unit: str = "ms"
    delimiter: str = ""
    memory_limit: str = "1GB"

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must name a file")
        self.rules()
        if "example_id" in self.key and len(self.key) > 1:
            raise ValueError("key: example_id identifies a row by itself; leave the other columns out")
        if self.time_unit not in TIME_UNITS:
            raise ValueError(f"time_unit must be one of {', '.join(TIME_UNITS)}, got {self.time_unit!r}")

    def rules(self) -> ValueRules:
        """What the values mean."""
        return ValueRules(self.scale, self.clip, self.invalid)

    def column_of(self, task: str) -> str:
        """The file's column with the scores of a task."""
        return self.scores.get(task, f"{self.scale}_{task}")


@dataclass(frozen=True)
class HttpConfig:
    """A scoring service; ``docs/external-teachers.md`` has the requests and the answers.

    Attributes:
        url: to POST to; ``https``, or ``http`` on this machine.
        version: the model version that the service must say it runs. A new model is a new version.
        scale, clip, invalid: see :class:`ValueRules`.
        fields: what the service is told of a row beside its id: ``user_id``, ``item_id`` and categorical features as
            raw values, ``event_time`` in ms UTC, numeric features as the models see them.
        batch_rows: rows of a request.
        timeout_s: of connecting, and of a whole answer.
        attempts: at a request, >= 1.
        pause_s: after the first failed attempt; it doubles with each, varied by up to a half.
        longest_pause_s: bound on a pause; a service that asks for a longer one ends the job.
        requests_per_s: most requests in a second; 0: no bound.
        token_env: name of an environment variable with a secret; empty: none is sent.
        token_header: the header that carries it; ``Authorization`` gets the word Bearer before it.
        ca_file: certificates to trust, for a service with a private authority.
        plain_http: True allows ``http`` to other machines: rows and secret travel unprotected.
    """

    url: str
    version: str
    scale: str
    clip: float = 0.0
    invalid: str = "refuse"
    fields: list[str] = field(default_factory=lambda: ["user_id", "item_id", "event_time"])
    batch_rows: int = 500
    timeout_s: float = 10.0
    attempts: int = 6
    pause_s: float = 0.5
    longest_pause_s: float = 60.0
    requests_per_s: float = 0.0
    token_env: str = ""
    token_header: str = "Authorization"
    ca_file: str = ""
    plain_http: bool = False

    def __post_init__(self) -> None:
        self._check_url()
        self.rules()
        if not self.version.strip():
            raise ValueError("version must name the model that the service runs, such as '2026-11-01'")
        if len(set(self.fields)) != len(self.fields) or "id" in self.fields:
            raise ValueError(f"fields must be different names, none of them id, got {self.fields}")
        if min(self.batch_rows, self.attempts) < 1:
            raise ValueError(f"batch_rows and attempts must be >= 1, got {self.batch_rows} and {self.attempts}")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be > 0, got {self.timeout_s}")
        if not 0 <= self.pause_s <= self.longest_pause_s:
            raise ValueError(
                f"pauses need 0 <= pause_s <= longest_pause_s, got {self.pause_s} and {self.longest_pause_s}"
            )
        if self.requests_per_s < 0:
            raise ValueError(f"requests_per_s must be >= 0, got {self.requests_per_s}")
        if self.token_env and not self.token_env.replace("_", "").isalnum():
            raise ValueError("token_env must be the name of an environment variable, never the secret itself")

    def _check_url(self) -> None:
        try:
            parts = urlsplit(self.url)
            host = parts.hostname or ""
            parts.port  # noqa: B018  # raises ValueError for a port that is none
        except ValueError as error:
            raise ValueError(f"url is not a URL: {error}") from error
        if parts.scheme not in ("https", "http") or not host:
            raise ValueError("url must begin with https://HOST, or http:// on this machine")
        if parts.username or parts.password:
            raise ValueError("url must not hold a user or a password; put a secret into the variable token_env names")
        if parts.scheme == "http" and host not in LOOPBACK and not self.plain_http:
            raise ValueError(
                f"url: http to {host} sends rows and secrets unprotected; use https, or set plain_http: true"
            )

    def rules(self) -> ValueRules:
        """What the values mean."""
        return ValueRules(self.scale, self.clip, self.invalid)

    def token(self) -> str:
        """The secret, or an empty string where none is configured. Raises KeyError where the variable is not set."""
        return os.environ[self.token_env] if self.token_env else ""
