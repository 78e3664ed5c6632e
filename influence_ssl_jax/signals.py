"""Handle Ctrl-C, SIGTERM and a lost terminal without losing finished work.

The program reports the reason, and ends in time.
"""

import contextlib
import ctypes
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

GRACE = 10.0
"""Seconds after a signal in which a run may end by itself; a compilation cannot be interrupted."""
MOMENT = 0.02
"""Seconds until an interrupt that Python dropped is raised again."""
NAMES = {
    signal.SIGINT: "interrupted (Ctrl-C)",
    signal.SIGTERM: "terminated (SIGTERM)",
    signal.SIGHUP: "the terminal was closed (SIGHUP)",
}

LastWord = Callable[[str], None]
_last_words: list[LastWord] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, handled as Ctrl-C with another exit status.

    A scheduler sends SIGTERM before it kills.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        self.number = signal.Signals(number)
        super().__init__(NAMES[self.number])


@contextlib.contextmanager
def last_word(say: LastWord) -> Iterator[None]:
    """Call `say(reason)` if the block's process must end at once."""
    _last_words.append(say)
    try:
        yield
    finally:
        _last_words.remove(say)


def leave_at_once(status: int, reason: str) -> None:
    """End the process without unwinding, after the functions of `last_word`.

    Files that are replaced as a whole stay intact.
    """
    for say in list(_last_words):
        with contextlib.suppress(Exception):
            say(reason)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def status_of(number: int) -> int:
    """Return the exit status of a process that a signal ended.

    It is 130 for Ctrl-C, 143 for SIGTERM and 129 for SIGHUP.
    """
    return 128 + number


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Turn SIGINT into KeyboardInterrupt, and SIGTERM and SIGHUP into Terminated.

    This holds while the block works. A SIGHUP that is ignored, as under nohup, stays so.

    Python handles a signal only between two of its own steps, and one step can be a compilation of minutes. A thread
    that the signal wakes at once therefore prints a message and, after GRACE seconds, ends the process with the
    signal's status. A second signal ends the process without waiting.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, waker = socket.socketpair()
    waker.setblocking(False)
    ended = threading.Event()
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set[signal.Signals]()
    before = {number: signal.signal(number, _raise) for number in NAMES.keys() - ignored}
    hook, sys.unraisablehook = sys.unraisablehook, functools.partial(_raise_dropped, sys.unraisablehook)
    previous = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(ours, ended, GRACE), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        sys.unraisablehook = hook
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        waker.close()
        thread.join()
        ours.close()


def _raise(number: int, _: FrameType | None) -> None:
    """Raise the exception of a signal."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _raise_dropped(others: Callable[[Any], None], dropped: Any) -> None:
    """Raise an interrupt again that Python dropped, a moment later.

    Python drops what is raised in destructors and in callbacks of its garbage collection; JAX has such a callback.

    Args:
        others: What is called for other exceptions.
        dropped: The exception as `sys.unraisablehook` has it.
    """
    error = dropped.exc_value
    if not isinstance(error, KeyboardInterrupt):
        others(dropped)
        return
    again: type[BaseException] = KeyboardInterrupt
    if isinstance(error, Terminated):  # the interpreter takes a class without arguments
        again = type(
            "Terminated", (Terminated,), {"__init__": functools.partialmethod(Terminated.__init__, error.number)}
        )
    main = ctypes.c_ulong(threading.main_thread().ident or 0)
    arguments = (main, ctypes.py_object(again))
    later = threading.Timer(MOMENT, ctypes.pythonapi.PyThreadState_SetAsyncExc, arguments)
    later.daemon = True
    later.start()


def _watch(wakes: socket.socket, ended: threading.Event, grace: float) -> None:
    """End the process `grace` seconds after a signal, or at another.

    The process continues if the block has ended by then.
    """
    number = _next(wakes)
    if number is None:
        return
    silent = min(1.0, grace / 2)
    if ended.wait(silent):
        return
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"{NAMES[number]}: stopping, within {grace:g} seconds.", file=sys.stderr, flush=True)
    wakes.settimeout(grace - silent)
    with contextlib.suppress(TimeoutError):
        if _next(wakes) is None and ended.is_set():
            return
    if not ended.is_set():
        leave_at_once(status_of(number), NAMES[number])


def _next(wakes: socket.socket) -> signal.Signals | None:
    """Wait for the next signal; return None if the block has ended."""
    while word := wakes.recv(1):
        if word[0] in NAMES:
            return signal.Signals(word[0])
    return None
