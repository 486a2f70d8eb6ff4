"""The Ray that an engine uses: one that is there already, a cluster, or one of its own for as long as it is needed."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from recdistill_core.errors import PluginError, UsageError
from recdistill_ray import RayConfig

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Ray says of its own code
        import ray as ray  # from here, others import it: it is looked for and silenced in one place
        import ray.data

        ray.data.DataContext.get_current()  # warns of its own defaults when it is first made
except ImportError as error:
    raise PluginError(
        f"engine 'ray' needs Ray, which cannot be imported: {error}",
        where="the Python environment of this command",
        fix="pip install 'recdistill[ray]', or use the engine 'local'",
    ) from error

#: While a Ray is started: no report to its makers, and of its C++ part nothing but the cause of its own end.
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_LOCK = threading.Lock()
_users, _own = 0, ExitStack()


@contextmanager
def connected(config: RayConfig) -> Iterator[None]:
    """Ray is there inside; the last to leave ends what the first to come started.

    Raises:
        UsageError: if Ray cannot be reached or started.
    """
    global _users
    with _LOCK:
        ours = _users > 0 or not ray.is_initialized()
        if ours and not _users:
            _start(config)
        _users += ours
    try:
        yield
    finally:
        with _LOCK:
            _users -= ours
            if ours and not _users:
                _own.close()


def _start(config: RayConfig) -> None:
    """Connect to ``config.address``, or start a Ray with room for the workers; ``_own`` undoes it."""
    level = logging.INFO if config.logs else logging.CRITICAL
    options = {"log_to_driver": config.logs, "logging_level": level}
    if not config.address:
        options |= {"num_cpus": math.ceil(config.workers * config.cpus_per_worker), "include_dashboard": False}
    _own.enter_context(_handlers_kept())
    if not config.logs:
        _own.enter_context(_messages_dropped())
    _own.callback(ray.shutdown)
    try:
        with _environment(SILENT), ExitStack() as muted:
            if not config.logs:
                muted.enter_context(_muted())
            ray.init(config.address or "local", **options)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError and others, by the form of the address
        _own.close()
        raise UsageError(
            f"Ray cannot be {'reached' if config.address else 'started'}: {' '.join(str(error).split())[:300]}",
            where=f"address {config.address!r} of engine 'ray'",
            fix="check the address and that the cluster runs, or leave 'address' out to start a Ray here",
        ) from error


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray's own handler of SIGTERM, which ends the process with a clean-up, goes when Ray goes."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _messages_dropped() -> Iterator[None]:
    """Ray prints on stdout whatever befalls a worker, which belongs to the command's own answer, and logs on stderr."""
    consoles = [
        handler
        for name in ("ray", "ray.data")
        for handler in logging.getLogger(name).handlers
        if type(handler).__module__.startswith("ray.")  # other people's handlers serve other loggers, too
    ]
    levels = [handler.level for handler in consoles]
    printing = ray._private.worker.print_to_stdstream  # no setting reaches it
    ray._private.worker.print_to_stdstream = lambda *given, **named: None
    for handler in consoles:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray._private.worker.print_to_stdstream = printing
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """``values`` are in the environment inside, but for those that the user has set."""
    absent = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del os.environ[name]


@contextmanager
def _muted() -> Iterator[None]:
    """Nothing reaches the terminal through file descriptor 2: Ray's C++ part tells there how it was set to be quiet."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
