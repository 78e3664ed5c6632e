"""Ctrl-C and SIGTERM: what was finished is kept, a word is said, and the process ends in time."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

GRACE = 10.0
"""Seconds after the signal in which a run may end by itself; a program that is being compiled cannot be cut short."""
NAMES = {signal.SIGINT: "interrupted (Ctrl-C)", signal.SIGTERM: "terminated (SIGTERM)"}

LastWord = Callable[[str], None]
_last_words: list[LastWord] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it before it kills: handled like Ctrl-C, with another exit status."""


@contextlib.contextmanager
def last_word(say: LastWord) -> Iterator[None]:
    """While the block works, have `say(reason)` called should the process have to end at once."""
    _last_words.append(say)
    try:
        yield
    finally:
        _last_words.remove(say)


def leave_at_once(status: int, reason: str) -> None:
    """End the process without unwinding, after the last words; files that are written whole or not at all stay so."""
    for say in list(_last_words):
        with contextlib.suppress(Exception):
            say(reason)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def status_of(number: int) -> int:
    """Return the exit status of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Turn SIGINT into KeyboardInterrupt and SIGTERM into Terminated while the block works.

    Python handles a signal between two of its own steps, and XLA may compile for minutes in one of them. A thread that
    the signal wakes at once says so and, when GRACE seconds have passed, ends the process with the signal's status. The
    first signal counts; a second one ends the process without waiting.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, waker = socket.socketpair()
    waker.setblocking(False)
    ended = threading.Event()
    before = {number: signal.signal(number, _raise) for number in NAMES}
    woken = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(ours, ended, GRACE), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        waker.close()
        thread.join()
        ours.close()


def _raise(number: int, _: FrameType | None) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _watch(wakes: socket.socket, ended: threading.Event, grace: float) -> None:
    """Wait for the first signal, then for the end of the block, then no longer."""
    number = _next(wakes)
    if number is None:
        return
    if ended.wait(min(1.0, grace)):
        return
    print(f"{NAMES[number]}: stopping, within {grace:g} seconds.", file=sys.stderr, flush=True)
    wakes.settimeout(grace)
    with contextlib.suppress(TimeoutError):
        if _next(wakes) is None and ended.is_set():
            return
    if not ended.is_set():
        leave_at_once(status_of(number), NAMES[number])


def _next(wakes: socket.socket) -> signal.Signals | None:
    """The next of our signals; None when the block has ended."""
    while word := wakes.recv(1):
        if word[0] in NAMES:
            return signal.Signals(word[0])
    return None
