"""An interpreter that has torch and transformers loaded: a fork of one that waits with them.

Loading them takes seconds, and a test of the plugin with workers starts three processes. ``serve``
waits at a socket; what is started as ``connect`` hands over its arguments, environment and streams,
and ends as the fork ends that runs in its place. A signal to it kills the fork. All forks hash
texts alike: what is to show that processes agree starts the interpreter itself.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
from typing import Any, NoReturn

_LENGTH = 8


def connect(path: str, arguments: list[str]) -> NoReturn:
    """Run the interpreter with these arguments in a fork of the one that waits at `path`."""
    if _program(arguments) is None or "PYTHONHASHSEED" in os.environ:
        os.execv(sys.executable, [sys.executable, *arguments])
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        task = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        message = json.dumps(task).encode()
        socket.send_fds(line, [len(message).to_bytes(_LENGTH, "big")], [0, 1, 2])
        line.sendall(message)
        for stream in (0, 1, 2):
            os.close(stream)
        answer = line.recv(_LENGTH)
    status = int.from_bytes(answer, "big") if answer else 1 << 8
    if os.WIFSIGNALED(status):
        with contextlib.suppress(OSError):
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def serve(path: str, executable: str) -> None:
    """Wait at `path` for who connects, in an interpreter that has loaded what they need.

    Parameters
    ----------
    path:
        Of a socket, which is made.
    executable:
        What the forks take for their interpreter: what starts :func:`connect`.
    """
    import scipy.stats  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    # The folder of this file.
    del sys.path[0]
    forks: dict[int, socket.socket] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with socket.socket(socket.AF_UNIX) as door, selectors.DefaultSelector() as selector:
        door.bind(path)
        door.listen(64)
        awake, alarm = socket.socketpair()
        alarm.setblocking(False)
        signal.set_wakeup_fd(alarm.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for waited_for in (door, awake, sys.stdin):
            selector.register(waited_for, selectors.EVENT_READ)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        try:
            while True:
                for key, _ in selector.select():
                    if key.fileobj is sys.stdin:
                        # Who started the server is gone.
                        return
                    if key.fileobj is awake:
                        awake.recv(4096)
                        _bury(forks, selector)
                    elif key.fileobj is door:
                        line, _ = door.accept()
                        try:
                            task, streams = _received(line)
                        except (EOFError, TimeoutError):
                            line.close()
                            continue
                        child = os.fork()
                        if child == 0:
                            signal.set_wakeup_fd(-1)
                            for number in (signal.SIGCHLD, signal.SIGTERM):
                                signal.signal(number, signal.SIG_DFL)
                            for each in (door, awake, alarm, line, *forks.values()):
                                each.close()
                            selector.close()
                            os._exit(_status_of(task, streams, executable))
                        for stream in streams:
                            os.close(stream)
                        forks[child] = line
                        selector.register(line, selectors.EVENT_READ, child)
                    elif key.data in forks:
                        # Who started it was killed.
                        selector.unregister(key.fileobj)
                        os.kill(key.data, signal.SIGKILL)
        finally:
            signal.set_wakeup_fd(-1)
            for child in forks:
                os.kill(child, signal.SIGKILL)


def _bury(forks: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while forks:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        line = forks.pop(child)
        if line in {key.fileobj for key in selector.get_map().values()}:
            selector.unregister(line)
            with contextlib.suppress(BrokenPipeError):
                line.sendall(status.to_bytes(_LENGTH, "big"))
        line.close()


def _received(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    line.settimeout(10)
    length, streams, *_ = socket.recv_fds(line, _LENGTH, 3)
    left, parts = int.from_bytes(length, "big"), []
    while left:
        parts.append(line.recv(left))
        left -= len(parts[-1])
        if not parts[-1]:
            break
    if left or not parts:
        for stream in streams:
            os.close(stream)
        raise EOFError
    task: dict[str, Any] = json.loads(b"".join(parts))
    return task, streams


def _status_of(task: dict[str, Any], given: list[int], executable: str) -> int:
    """Run a task to the end of all it left for the end, and return its exit status."""
    status: object = 0
    try:
        _run(task, given, executable)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    # What an interpreter does when it ends, but for taking apart all that it has loaded.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    if status is None or isinstance(status, int):
        return status or 0
    sys.stderr.write(f"{status}\n")
    return 1


def _run(task: dict[str, Any], streams: list[int], executable: str) -> None:
    import numpy

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(task["folder"])
    os.environ.clear()
    os.environ.update(task["environment"])
    sys.executable = executable
    added = os.environ.get("PYTHONPATH")
    sys.path[:] = [*(added.split(os.pathsep) if added else []), *sys.path]
    # As no two interpreters have it.
    numpy.random.seed()
    tempfile.tempdir = None
    program = _program(task["arguments"])
    assert program is not None
    kind, name, arguments = program
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = [name, *arguments]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments]
        main = sys.modules["__main__"] = type(sys)("__main__")
        exec(compile(name, "<string>", "exec"), vars(main))


def _program(arguments: list[str]) -> tuple[str, str, list[str]] | None:
    """Return ``-m`` and a module or ``-c`` and code, and its arguments; None of other options."""
    for at, each in enumerate(arguments):
        if each[:2] in ("-m", "-c"):
            if len(each) > 2:
                return each[:2], each[2:], arguments[at + 1 :]
            return each, arguments[at + 1], arguments[at + 2 :]
        if each != "-u":
            return None
    return None


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        connect(sys.argv[2], sys.argv[3:])
