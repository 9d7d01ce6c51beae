"""Work shared by the machines of a Ray cluster, P. Moritz et al., 2018, arXiv:1712.05889.

Ray starts workers anew that have died, and gives them their task again. Nothing here does.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from iba_core.arguments import given
from iba_core.datasets.work import THREADS, ResultT, TaskT, Work, Worker
from iba_core.errors import IBAError, InputError, MissingDependencyError

RETRIES = 2
"""How often a task is done again whose worker has died."""

_HERE = "local"
"""Address of a cluster that is this machine, and ends with the work."""

_ADDRESS = re.compile(r"auto|local|(ray://)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")

_PATIENCE = 10.0
"""Seconds in which a machine answers. Ray itself asks for minutes, and ends the program then."""

_DEVICE = "cuda"
"""What both frameworks call the GPU that a worker was given."""


def require_cluster(address: Any) -> str:
    """Check the address of a cluster, without calling there.

    Raises:
        InputError: it is none.
        MissingDependencyError: Ray is not installed.

    Example:
        >>> require_cluster("here")
        Traceback (most recent call last):
        iba_core.errors.InputError: ray='here' must be the address of a cluster: 'auto', 'local', or host:port
    """
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        raise InputError(
            f"{given('ray', address)} must be the address of a cluster: 'auto', 'local', or host:port"
        )
    if find_spec("ray") is None:
        raise MissingDependencyError("several machines need Ray: pip install 'iba-core[ray]'")
    return address


def on_cluster(
    work: Work[TaskT, ResultT], tasks: Iterable[TaskT], address: str, jobs: int | None, gpus: float
) -> Iterator[ResultT]:
    """Do tasks by actors of a Ray cluster, one for each at a time.

    Args:
        work: what to do. Each actor gets a copy.
        tasks: each is asked for when an actor is free.
        address: see `require_cluster`. A program that is connected already stays so.
        jobs: number of actors, with a processor each; None for as many as there is room for.
        gpus: share of a GPU that each needs.

    Yields:
        The results as they come.

    Raises:
        InputError: there is no cluster or no room, or the work cannot be pickled.
        IBAError: a task has lost its worker too often, and nothing stands for its result.
    """
    ray: Any = import_module("ray")
    with _connected(ray, address, jobs):
        room = _room(ray, gpus)
        fetch = partial(ray.get, ray.put(_pickled(ray, work, address)))
        kind = ray.remote(_Actor).options(
            num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=RETRIES
        )
        actors = [kind.remote(_DEVICE if gpus else None) for _ in range(jobs or room)]
        try:
            yield from _results(ray, work, fetch, iter(tasks), actors)
        finally:
            for actor in actors:
                ray.kill(actor)


class _Actor(Worker):
    """A worker with one processor, which the frameworks are told before they are loaded."""

    def __init__(self, device: str | None) -> None:
        super().__init__(device)
        for name in THREADS:
            os.environ.setdefault(name, "1")


def _results(
    ray: Any,
    work: Work[TaskT, ResultT],
    fetch: Callable[[], bytes],
    tasks: Iterator[TaskT],
    actors: list[Any],
) -> Iterator[ResultT]:
    """Give each actor a task when it has started, and the next when it is done."""
    starting = {actor.start.remote(fetch): actor for actor in actors}
    running: dict[Any, tuple[Any, TaskT]] = {}
    is_over = False
    # One that there is no room for may never start.
    while running or not is_over:
        (done,), _ = ray.wait([*running, *starting])
        results: list[ResultT] = []
        if done in running:
            actor, task = running.pop(done)
            results.append(_result(ray, done, work, task))
        else:
            actor = starting.pop(done)
            _value(ray, done)
        is_over = True
        for task in tasks:
            running[actor.run.remote(task, fetch)] = actor, task
            is_over = False
            break
        yield from results


def _result(ray: Any, done: Any, work: Work[TaskT, ResultT], task: TaskT) -> ResultT:
    try:
        found: ResultT = _value(ray, done)
    except _LostError as error:
        if work.lost is None:
            raise
        return work.lost(task, work.options, error)
    return found


class _LostError(IBAError):
    """Workers have died of a task."""


def _value(ray: Any, done: Any) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # as the worker raised it
    except ray.exceptions.RayActorError as error:
        raise _LostError(
            f"{RETRIES + 1} workers have died one after the other, perhaps for want of memory"
        ) from error


def _pickled(ray: Any, work: Work[TaskT, ResultT], address: str) -> bytes:
    """The work as bytes. What the program itself defines, such as a model's class, goes with it."""
    try:
        found: bytes = ray.cloudpickle.dumps(work)
    except Exception as error:  # a model may raise anything
        raise InputError(f"ray={address!r} needs a model that can be pickled: {error}") from error
    return found


def _room(ray: Any, gpus: float) -> int:
    """Number of workers that the cluster has room for."""
    there = ray.cluster_resources()
    processors, devices = there.get("CPU", 0), there.get("GPU", 0)
    room = int(min(processors, devices / gpus + 1e-9) if gpus else processors)
    if room < 1:
        raise InputError(
            f"gpus={gpus:g}: the cluster has no room for a worker, with {processors:g} processors and "
            f"{devices:g} GPUs"
        )
    return room


# -- the connection -----------------------------------------------------------------------------------


@contextmanager
def _connected(ray: Any, address: str, jobs: int | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == _HERE:
        options |= {"num_cpus": jobs, "include_dashboard": False}
    _require_answer(address)
    with _process_as_before():
        # Nothing is told to anybody, unless the user says so.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(address, **options)
        except Exception as error:  # Ray raises anything
            ray.shutdown()
            raise _no_answer(address, error) from error
        try:
            yield
        finally:
            ray.shutdown()


def _require_answer(address: str) -> None:
    """Check that something listens at an address that names a machine."""
    found = _ADDRESS.fullmatch(address)
    if found is None or found["host"] is None:
        return
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str, error: Exception) -> InputError:
    reason = str(error).partition("\n")[0]
    return InputError(f"ray={address!r}: no cluster answers there: {reason}")


@contextmanager
def _process_as_before() -> Iterator[None]:
    """Undo what a connection leaves in this process: variables, a handler of signals, a hook."""
    is_main = threading.current_thread() is threading.main_thread()
    environment, hook, handler = dict(os.environ), sys.excepthook, signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        sys.excepthook = hook
        if is_main:
            signal.signal(signal.SIGTERM, handler)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
