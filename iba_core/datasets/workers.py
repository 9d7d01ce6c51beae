"""The same work in this process, in several, or on a cluster."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

from iba_core.arguments import require_number, require_whole
from iba_core.datasets.cluster import on_cluster, require_cluster
from iba_core.datasets.processes import in_processes
from iba_core.datasets.work import ResultT, TaskT, Work
from iba_core.errors import InputError

MOST_JOBS = 1024
"""More processes are a slip of the pen."""


class Workers(NamedTuple):
    """Who shares the work.

    Attributes:
        jobs: number of workers; None for one process, or for as many as the cluster has room for.
        ray: address of a Ray cluster; None for processes of this machine.
        gpus: share of a GPU that each worker on the cluster needs.
    """

    jobs: int | None
    ray: str | None
    gpus: float


def require_workers(jobs: Any, ray: Any, gpus: Any) -> Workers:
    """Check the arguments that say who shares the work.

    Raises:
        InputError: one is wrong.
        MissingDependencyError: Ray is needed and not installed.

    Example:
        >>> require_workers(2, None, 0.0)
        Workers(jobs=2, ray=None, gpus=0.0)
    """
    jobs = None if jobs is None else require_whole("jobs", jobs, 1, MOST_JOBS)
    gpus = require_number("gpus", gpus, 0, 1)
    if ray is None and gpus:
        raise InputError(f"gpus={gpus:g} is for workers on a cluster; give ray= as well")
    return Workers(jobs, None if ray is None else require_cluster(ray), gpus)


def spread(
    work: Work[TaskT, ResultT], tasks: Iterable[TaskT], workers: Workers
) -> Generator[ResultT, None, None]:
    """Do tasks.

    Args:
        work: what to do.
        tasks: the tasks. They and the results can be pickled.
        workers: who shares them.

    Yields:
        The results; those of a cluster as they come, others in the order of the tasks.

    Example:
        >>> work = Work(lambda explainer, task, power: task**power, None, 2)
        >>> list(spread(work, [1, 2, 3], Workers(None, None, 0.0)))
        [1, 4, 9]
    """
    if workers.ray is not None:
        yield from on_cluster(work, tasks, workers.ray, workers.jobs, workers.gpus)
    elif workers.jobs in (None, 1):
        yield from map(work, tasks)
    else:
        assert workers.jobs is not None, "it is a number"
        yield from in_processes(work, tasks, workers.jobs)
