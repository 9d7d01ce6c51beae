"""What workers do: one function, a model and options, sent to each once; and tasks, one at a time."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from iba_core.errors import IBAError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
"""What tells the frameworks and their libraries how many processors to use, before they are loaded."""


@dataclass(frozen=True)
class Work(Generic[TaskT, ResultT]):
    """What is done with each task.

    Attributes:
        function: called with the explainer, a task and the options.
        explainer: the explainer.
        options: what the tasks have in common.
        lost: what stands for the result of a task that workers have died of, made of the task, the options
            and the error; None to raise the error.
    """

    function: Callable[[Any, TaskT, Any], ResultT]
    explainer: Any
    options: Any = None
    lost: Callable[[TaskT, Any, IBAError], ResultT] | None = None

    def __call__(self, task: TaskT) -> ResultT:
        """Do a task."""
        return self.function(self.explainer, task, self.options)


class Worker:
    """Does tasks in a process of its own. What it has compiled for one stays for the next.

    Args:
        device: where to put the model; None to leave it where it was.
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self._work: Work[Any, Any] | None = None

    def start(self, fetch: Callable[[], bytes]) -> Work[Any, Any]:
        """Load the work, if that has not been done.

        Not a part of the constructor, whose errors would be a traceback on stderr.

        Args:
            fetch: gives the pickled work.

        Raises:
            IBAError: it cannot be loaded.
            InputError: the device is not there.
        """
        if self._work is None:
            try:
                work: Work[Any, Any] = pickle.loads(fetch())
            except Exception as error:  # a model may raise anything
                raise IBAError(f"a worker cannot load the model; explain in one process: {error}") from error
            if self._device is not None:
                work.explainer.adapter.place(self._device)
            self._work = work
        return self._work

    def run(self, task: Any, fetch: Callable[[], bytes]) -> Any:
        """Do a task, and load the work before if that has not been done."""
        return self.start(fetch)(task)
