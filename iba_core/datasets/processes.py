"""Explaining on several processes of one machine."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import Any

from iba_core.datasets.explaining import Options, Outcome, Task, explain_item
from iba_core.errors import IBAError, InputError
from iba_core.explainer import Explainer
from iba_core.files import discard_unfinished

MOST_JOBS = 1024
"""More processes are a slip of the pen."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
"""What tells the frameworks and their libraries how many processors to use, before they are loaded."""

_AHEAD = 2
"""Tasks in the queue for each process."""

_worker: dict[str, Any] = {}
"""What a worker process has got at its start."""


def explained_by_processes(
    explainer: Explainer, tasks: Iterable[Task], options: Options, jobs: int
) -> Iterator[Outcome]:
    """Explain on several processes, which write their results themselves.

    Args:
        explainer: a fitted explainer, which each process gets a copy of.
        tasks: what to explain. Some are taken ahead.
        options: what the explanations have in common.
        jobs: number of processes. They share the processors, unless ``OMP_NUM_THREADS`` is set.

    Yields:
        The outcomes in the order of the tasks.

    Raises:
        InputError: the explainer cannot be pickled.
        IBAError: a process has died.
    """
    try:
        content = pickle.dumps((explainer, options))
    except Exception as error:  # a model may raise anything
        raise InputError(
            f"jobs={jobs} needs a model that can be pickled; with jobs=1 it need not be: {error}"
        ) from error
    waiting: deque[Future[Outcome]] = deque()
    remaining = iter(tasks)
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start, (content,))
    try:
        with _threads(max(1, _processors() // jobs)):
            while True:
                ahead = jobs * _AHEAD - len(waiting)
                waiting.extend(pool.submit(_explain, task) for task in islice(remaining, ahead))
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
    added = [name for name in _THREADS if name not in os.environ]
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
    _worker["content"] = content


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        discard_unfinished()
        os._exit(1)


def _explain(task: Task) -> Outcome:
    if "content" in _worker:
        # Here rather than at the start, whose errors would be a traceback on stderr.
        try:
            _worker["explainer"], _worker["options"] = pickle.loads(_worker["content"])
            del _worker["content"]
        except Exception as error:  # a model may raise anything
            raise IBAError(f"a process cannot load the model; give jobs=1: {error}") from error
    return explain_item(_worker["explainer"], task, _worker["options"])
