"""Stop a trial that hangs, and keep one from ending the process as if all were well."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

import pytest

__all__ = ["Deadline", "TrialTimeout", "keep_stderr", "last_resort", "release_stderr"]

# A trial that does not come back to the interpreter is given this long after its time.
_GRACE_SECONDS = 30.0

_kept_stderr: list[int] = []


def keep_stderr() -> None:
    """Keep the process's error stream at hand while pytest captures it, to say last words."""
    _kept_stderr.append(os.dup(2))


def release_stderr() -> None:
    """Undo the last :func:`keep_stderr`."""
    os.close(_kept_stderr.pop())


class _LastResort:
    """Ends the process, with a traceback, when it does not come back to the interpreter in time.

    Starting and stopping it takes a thread each, so between trials that follow each other it runs
    on, and is started anew only for a trial that it would strike too early. Then it strikes no
    later than twice the time of one trial.
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._holders = 0

    def hold(self) -> None:
        """Let it run on between trials, until :meth:`release`."""
        self._holders += 1

    def release(self) -> None:
        """Undo the last :meth:`hold`."""
        self._holders -= 1
        self.leave()

    def guard(self, seconds: float) -> None:
        """Give what runs next at least that long."""
        now = time.monotonic()
        if now + seconds > self._until:
            given = 2 * seconds if self._holders else seconds
            self._until = now + given
            faulthandler.dump_traceback_later(given, exit=True, file=_stderr_fileno())

    def leave(self) -> None:
        """What ran has ended."""
        if not self._holders and self._until:
            self._until = 0.0
            faulthandler.cancel_dump_traceback_later()


_LAST_RESORT = _LastResort()


@contextmanager
def last_resort() -> Generator[None, None, None]:
    """Within it nothing but trials with a :class:`Deadline` takes long."""
    _LAST_RESORT.hold()
    try:
        yield
    finally:
        _LAST_RESORT.release()


class TrialTimeout(BaseException):
    """Raised inside a trial that takes too long; not an Exception, so that tests let it through."""


class Deadline:
    """Raises :class:`TrialTimeout` inside the context when its time is up, and again each second.

    Where a signal cannot interrupt (outside the main thread, on Windows, in a C call that never
    returns) the process is ended after a grace time, with a traceback: as a crash, which is a DUE
    under xdist.

    Parameters
    ----------
    seconds:
        None: no deadline.
    config:
        Of the session; it tells whether this process is one of pytest-xdist's workers.

    Attributes
    ----------
    expired:
        Whether the time was up.
    """

    def __init__(self, seconds: float | None, config: pytest.Config) -> None:
        self._seconds = seconds
        self._is_worker = hasattr(config, "workerinput")
        self.expired = False
        self._started = 0.0
        self._handler: Any = None
        self._timer: tuple[float, float] = (0.0, 0.0)
        self._exit = os._exit
        self._watched = False

    def __enter__(self) -> Deadline:
        self._guard_exit()
        if self._seconds is None:
            return self
        self._started = time.monotonic()
        if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGALRM, self._raise)
            self._timer = signal.setitimer(signal.ITIMER_REAL, self._seconds, 1.0)
        self._watched = True
        _LAST_RESORT.guard(self._seconds + _GRACE_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._watched:
            _LAST_RESORT.leave()
        if self._handler is not None:
            signal.setitimer(signal.ITIMER_REAL, *self._timer)
            signal.signal(signal.SIGALRM, self._handler)
        os._exit = self._exit
        if self._seconds is not None and time.monotonic() - self._started >= self._seconds:
            # Another timer, such as pytest-timeout's, may have been faster.
            self.expired = True
        return isinstance(error, TrialTimeout)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.expired = True
        if not _is_at_the_edge(frame):
            raise TrialTimeout(f"it took longer than {self._seconds:g} s")

    def _guard_exit(self) -> None:
        owner, leave = os.getpid(), self._exit

        def leave_with_failure(status: int) -> NoReturn:
            if os.getpid() == owner and not self._is_worker:
                sentence = (
                    "\nft2: a trial ended the process with os._exit, so there is no verdict; run "
                    "with -n 1 (pytest-xdist) to have it counted as a DUE\n"
                )
                os.write(_stderr_fileno(), sentence.encode())
                status = status or 3
            leave(status)

        os._exit = leave_with_failure


_EDGES = (Deadline.__enter__.__code__, Deadline.__exit__.__code__)


def _is_at_the_edge(frame: FrameType | None) -> bool:
    """Whether a context is being entered or left, where nobody would catch what is raised."""
    while frame is not None:
        if frame.f_code in _EDGES:
            return True
        frame = frame.f_back
    return False


def _stderr_fileno() -> int:
    return _kept_stderr[-1] if _kept_stderr else 2
