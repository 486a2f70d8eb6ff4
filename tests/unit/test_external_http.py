"""A teacher behind HTTP: what is sent, what is asked for again, what ends the job, and what never reaches a log."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_cases import START, words
from external_cases import (
    RETRIED,
    VERSION,
    Service,
    changed,
    context_of,
    dripping,
    logit_of,
    serving,
    slow,
    source_in,
    status,
    teacher_of,
)

from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import DataError, UsageError
from recdistill_core.registry import installed
from recdistill_external.config import HttpConfig
from recdistill_external.http_client import HttpClient
from recdistill_external.http_teacher import HttpTeacher
from recdistill_parquet.dataset import ParquetSource

ROWS = np.arange(20)
LOGITS = [logit_of(100 + row) for row in ROWS]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ParquetSource:
    return source_in(tmp_path_factory.mktemp("external") / "dataset")


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as found:
        yield found


def score(source: ParquetSource, service: Service, **changes: Any) -> list[float]:
    teacher = teacher_of(source, "http", **service.settings(**changes))
    found: list[float] = teacher.score(source.batch(ROWS)).logits["click"].tolist()
    return found


def refused(source: ParquetSource, service: Service, *expected: str, **changes: Any) -> None:
    with pytest.raises(DataError) as error:
        score(source, service, **changes)
    words(error, *expected, service.url)


def test_rows_go_out_in_requests_and_logits_come_back(source: ParquetSource, service: Service) -> None:
    assert score(source, service) == LOGITS
    assert [len(request["asked"]["rows"]) for request in service.requests] == [8, 8, 4]
    assert service.requests[0]["asked"] == {"tasks": ["click"], "rows": [{"id": 100 + n} for n in range(8)]}


def test_the_service_is_told_what_the_fields_name(source: ParquetSource, service: Service) -> None:
    score(source, service, fields=["user_id", "item_id", "event_time", "genre", "price"])
    assert service.requests[0]["asked"]["rows"][4] == {
        "id": 104,
        "user_id": "bob",
        "item_id": 44,
        "event_time": START + 4000,
        "genre": "rock",
        "price": pytest.approx(0.4),
    }


def test_a_value_out_of_vocabulary_is_null(service: Service, tmp_path: Path) -> None:
    rare = source_in(tmp_path / "dataset", rows=8, vocabulary_min_count=2)
    teacher_of(rare, "http", **service.settings(fields=["item_id"])).score(rare.batch(np.arange(8)))
    told = {row["id"]: row["item_id"] for request in service.requests for row in request["asked"]["rows"]}
    assert told[100] == told[107] == 40
    assert told[101] is None


def test_no_label_is_sent(source: ParquetSource, service: Service) -> None:
    score(source, service, fields=["user_id", "item_id", "event_time", "genre", "price"])
    assert "click" not in json.dumps([request["asked"]["rows"] for request in service.requests])


@pytest.mark.parametrize("name", RETRIED)
def test_a_failed_attempt_is_repeated(name: str, source: ParquetSource, service: Service) -> None:
    service.fail(RETRIED[name], None, RETRIED[name], RETRIED[name])
    teacher = teacher_of(source, "http", **service.settings())
    assert teacher.score(source.batch(ROWS)).logits["click"].tolist() == LOGITS
    assert {key: teacher.describe()[key] for key in ("requests", "retries")} == {"requests": 6, "retries": 3}
    assert set(service.scored.values()) == {1}


@pytest.mark.parametrize("fault", [slow, dripping])
def test_an_answer_that_takes_too_long_is_asked_for_again(fault: Any, source: ParquetSource, service: Service) -> None:
    service.fail(fault)
    assert score(source, service, timeout_s=0.3) == LOGITS
    assert len(service.requests) == 4


@pytest.mark.parametrize("seed", range(5))
def test_random_faults_change_nothing(seed: int, source: ParquetSource, service: Service) -> None:
    service.fail_at_random(seed, share=0.5)
    assert score(source, service, batch_rows=2, attempts=30) == LOGITS
    assert len(service.requests) > 10
    assert set(service.scored.values()) == {1}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda answer: ["x"], "the answer is no JSON object but list"),
        (lambda answer: answer.pop("ids") and None, "'ids' is no list but NoneType"),
        (lambda answer: answer["ids"].reverse(), "the ids are in another order: place 0 has 107, asked for was 100"),
        (lambda answer: answer["ids"].__setitem__(1, 7), "the ids are others: place 1 has 7, asked for was 101"),
        (lambda answer: answer["ids"].pop() and None, "the answer has 7 ids for 8 rows"),
        (lambda answer: answer.update(scores={"like": [1]}), "'scores' holds like, asked for were click"),
        (lambda answer: answer.update(scores=[1]), "'scores' holds list, asked for were click"),
        (lambda answer: answer.update(scores={"click": [1]}), "the scores of task 'click' are 1 for 8 rows"),
        (lambda answer: answer["scores"].update(click=None), "the scores of task 'click' are NoneType for 8 rows"),
        (lambda answer: answer["scores"]["click"].__setitem__(2, "1"), "the scores of task 'click' hold '1'"),
        (lambda answer: answer["scores"]["click"].__setitem__(2, True), "the scores of task 'click' hold True"),
        (
            lambda answer: answer["scores"]["click"].__setitem__(2, 10**400),
            "a score of task 'click' is no 64-bit float",
        ),
        (lambda answer: b"[" * 100_000, "is no JSON"),
    ],
)
def test_an_answer_that_stays_unsound_ends_the_job(
    change: Any, expected: str, source: ParquetSource, service: Service
) -> None:
    service.fail(changed(change), changed(change))
    refused(source, service, "no sound answer in 2 attempts", expected, "was committed is not asked for", attempts=2)
    assert len(service.requests) == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "NaN or infinite"), (float("nan"), "NaN or infinite"), (1e400, "NaN or infinite"), (50, "beyond +-40")],
)
def test_invalid_scores_are_refused_or_skipped(
    value: Any, reason: str, source: ParquetSource, service: Service
) -> None:
    fault = changed(lambda answer: answer["scores"]["click"].__setitem__(3, value))
    service.fail(fault)
    refused(source, service, "1 of task 'click'", reason, "of example 103", f"version {VERSION}")
    service.fail(fault)
    teacher = teacher_of(source, "http", **service.settings(invalid="skip"))
    found = teacher.score(source.batch(ROWS)).logits["click"].tolist()
    assert np.isnan(found[3])
    assert found[:3] + found[4:] == LOGITS[:3] + LOGITS[4:]
    assert sum(teacher.describe()["skipped"]["click"].values()) == 1


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (400, "check url and"),
        (401, "check token_env"),
        (404, "check url"),
        (413, "lower batch_rows"),
        (302, "redirection"),
    ],
)
def test_a_refused_request_is_not_repeated(code: int, fix: str, source: ParquetSource, service: Service) -> None:
    service.fail(status(code, Location="http://127.0.0.1:1/"))
    refused(source, service, f"refused the request with status {code}", "not now", fix)
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("version", "expected"), [("v2", "the service runs version 'v2'"), (None, "does not say which version it runs")]
)
def test_another_model_is_refused(version: Any, expected: str, source: ParquetSource, service: Service) -> None:
    service.fail(changed(lambda answer: answer.update(version=version)))
    refused(source, service, expected, "labels of version 'v1' were asked for")
    assert len(service.requests) == 1


def test_an_endless_answer_is_refused(source: ParquetSource, service: Service, monkeypatch: Any) -> None:
    monkeypatch.setattr("recdistill_external.http_client.MOST_BYTES", 100)
    refused(source, service, "an answer is longer than 100 bytes", "lower batch_rows")


def test_a_service_that_is_not_there_is_named(source: ParquetSource) -> None:
    with serving() as gone:
        pass
    refused(source, gone, "the service gave no sound answer in 2 attempts", "NewConnectionError", attempts=2)


def client_of(service: Service, **changes: Any) -> tuple[HttpClient, list[float]]:
    """A client whose clock moves only where it sleeps, and what it slept."""
    slept: list[float] = []
    now = [100.0]

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        now[0] += seconds

    config = HttpConfig(**service.settings(**changes))
    return HttpClient(config, sleep=sleep, clock=lambda: now[0], draw=random.Random(0)), slept


def test_pauses_double_and_vary_up_to_a_bound(service: Service) -> None:
    service.fail(*[status(503)] * 7)
    client, slept = client_of(service, attempts=8, pause_s=1.0, longest_pause_s=20.0)
    client.post({"tasks": [], "rows": []}, lambda answer: answer)
    for place, pause in enumerate(slept):
        assert min(0.5 * 2**place, 20) <= pause <= min(1.5 * 2**place, 20)
    assert len(slept) == 7
    assert slept[-1] == 20
    assert slept[0] != 1.0
    client.close()


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), (formatdate(4e9, usegmt=True), None, None), ("soon", 0, 1.5), ("-1", 0, 1.5), ("0", 0, 1.5)],
)
def test_a_pause_that_the_service_asks_for_is_kept(header: str, least: Any, most: Any, service: Service) -> None:
    service.fail(status(429, Retry_After=header))
    client, slept = client_of(service, pause_s=1.0)
    if least is None:
        with pytest.raises(
            DataError, match=r"asks for a pause of [\d,]+ s \(status 429\), more than longest_pause_s = 60"
        ):
            client.post({"tasks": [], "rows": []}, lambda answer: answer)
        assert slept == []
    else:
        client.post({"tasks": [], "rows": []}, lambda answer: answer)
        assert least <= slept[0] <= most
    client.close()


def test_the_rate_is_kept(service: Service) -> None:
    client, slept = client_of(service, requests_per_s=4.0)
    for _ in range(4):
        client.post({"tasks": [], "rows": []}, lambda answer: answer)
    assert slept == [0.25, 0.25, 0.25]
    client.close()


def test_a_secret_is_sent_and_never_shown(
    source: ParquetSource, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORER_TOKEN", "s3cret-value")
    score(source, service, token_env="SCORER_TOKEN")
    score(source, service, token_env="SCORER_TOKEN", token_header="X-Key")
    assert service.requests[0]["headers"]["Authorization"] == "Bearer s3cret-value"
    assert service.requests[-1]["headers"]["X-Key"] == "s3cret-value"
    assert "Authorization" not in service.requests[-1]["headers"]
    service.fail(lambda handler, answer: handler.reply(403, ["-" * 180, handler.headers["Authorization"]]))
    settings = service.settings(token_env="SCORER_TOKEN", url=service.url + "?key=other")
    with pytest.raises(DataError) as error:
        teacher_of(source, "http", **settings).score(source.batch(ROWS))
    words(error, "status 403", "***")
    assert "s3cret" not in str(error.value)
    monkeypatch.setenv("SCORER_TOKEN", 'quo"ted')
    service.fail(lambda handler, answer: handler.reply(403, [handler.headers["Authorization"]]))
    with pytest.raises(DataError) as error:
        teacher_of(source, "http", **settings).score(source.batch(ROWS))
    assert "ted" not in str(error.value).partition("status 403")[2]
    monkeypatch.setenv("SCORER_TOKEN", "s3cret-value")
    assert "key=other" not in str(error.value)
    teacher = teacher_of(source, "http", **settings)
    assert "s3cret" not in repr(vars(teacher)["config"]) + str(teacher.describe())


@pytest.mark.parametrize("value", [None, "", "two\nlines", "schlüssel"])
def test_a_secret_that_is_not_there_is_named(
    value: str | None, source: ParquetSource, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCORER_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("SCORER_TOKEN", value)
    with pytest.raises(UsageError) as error:
        score(source, service, token_env="SCORER_TOKEN")
    words(error, "the environment variable 'SCORER_TOKEN'", "is not set" if value is None else "holds no secret")
    assert service.requests == []


def test_fields_that_the_dataset_does_not_have_are_refused(source: ParquetSource, service: Service) -> None:
    with pytest.raises(UsageError) as error:
        teacher_of(source, "http", **service.settings(fields=["gender"]))
    words(error, "the dataset has no 'gender' (did you mean 'genre'?)", "setting fields", "event_time, genre, item_id")
    with pytest.raises(UsageError, match="looks up genre in the dataset, and was built without one"):
        make(
            installed(),
            "teacher",
            {"name": "http", **service.settings(fields=["genre", "price"])},
            BuildContext(source.schema, ("click",)),
        )


def test_the_fingerprint_follows_version_and_meaning(source: ParquetSource, service: Service) -> None:
    def name_of(**changes: Any) -> str:
        name: str = teacher_of(source, "http", **service.settings(**changes)).fingerprint()
        return name

    others = [{"version": "v2"}, {"scale": "probability"}, {"fields": ["event_time"]}]
    assert len({name_of(), *(name_of(**change) for change in others)}) == 4
    same = [{"url": "https://elsewhere/score"}, {"batch_rows": 3}, {"attempts": 1}, {"invalid": "skip"}]
    assert {name_of(**change) for change in same} == {name_of()}
    assert service.requests == []


def test_certificates_are_checked(source: ParquetSource) -> None:
    config = HttpConfig("https://example.org/", "1", "logit", fields=[])
    pool = HttpTeacher(config, context_of(source))._client._pool
    assert pool.connection_pool_kw["cert_reqs"] == "CERT_REQUIRED"
