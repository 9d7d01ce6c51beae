"""Work shared by several processes of one machine."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import Any

from iba_core.datasets.work import THREADS, ResultT, TaskT, Work, Worker
from iba_core.errors import IBAError, InputError
from iba_core.files import discard_unfinished

_AHEAD = 2
"""Tasks in the queue for each process."""

_worker: list[Callable[[Any], Any]] = []
"""What this process does with a task, if it is a worker."""


def in_processes(work: Work[TaskT, ResultT], tasks: Iterable[TaskT], jobs: int) -> Iterator[ResultT]:
    """Do tasks in several processes.

    Args:
        work: what to do. Each process gets a copy.
        tasks: some are taken ahead.
        jobs: number of processes. They share the processors, unless ``OMP_NUM_THREADS`` is set.

    Yields:
        The results in the order of the tasks.

    Raises:
        InputError: the work cannot be pickled.
        IBAError: a process has died.
    """
    try:
        content = pickle.dumps(work)
    except Exception as error:  # a model may raise anything
        raise InputError(
            f"jobs={jobs} needs a model that can be pickled; with jobs=1 it need not be: {error}"
        ) from error
    waiting: deque[Future[ResultT]] = deque()
    remaining = iter(tasks)
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start, (content,))
    try:
        with _threads(max(1, _processors() // jobs)):
            while True:
                ahead = jobs * _AHEAD - len(waiting)
                waiting.extend(pool.submit(_run, task) for task in islice(remaining, ahead))
                if not waiting:
                    return
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise IBAError(
            f"one of the {jobs} processes has died, perhaps for want of memory; run again to go on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let processes that start meanwhile use so many processors each, unless the user has said how many."""
    added = [name for name in THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, str(count)))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _start(content: bytes) -> None:
    """Begin as a worker. Ctrl-C is for the parent to answer, and nothing outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.append(partial(Worker().run, fetch=lambda: content))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        discard_unfinished()
        os._exit(1)


def _run(task: Any) -> Any:
    return _worker[0](task)
