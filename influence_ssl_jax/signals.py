"""Handle Ctrl-C, SIGTERM and a lost terminal without losing finished work.

The program reports the reason, and ends in time.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

GRACE = 10.0
"""Seconds after a signal in which a run may end by itself; a compilation cannot be interrupted."""
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
    previous = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(ours, ended, GRACE), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        waker.close()
        thread.join()
        ours.close()


def _raise(number: int, _: FrameType | None) -> None:
    """Raise the exception of a signal."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _watch(wakes: socket.socket, ended: threading.Event, grace: float) -> None:
    """End the process `grace` seconds after a signal, or at another.

    It goes on if the block has ended by then.
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
