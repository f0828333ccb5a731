"""The threads that a program runs on.

Steps follow each other closely, and to wake a thread takes longer than some steps. So a worker that is done looks out
for more work for a moment, in machine code and without the GIL, and only then goes to sleep.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bareconv.errors import BareconvError
from bareconv.kernels.cpu.clock import native, operands
from bareconv.kernels.cpu.kernel import Frame, Kernel

SPINS = 1000  # turns of waiting before the core is offered to others
LOOKOUT = 20_000  # turns of looking out for work before sleeping: some milliseconds
# The words that all workers look at: how many pieces of work there were so far, and the last one. How many times one
# was done, by any of them, is a cache line away.
_BEGUN, _FUNCTION, _TABLE, _FIRST, _DONE = 0, 1, 2, 3, 8


@dataclass(frozen=True)
class Serve(Kernel):
    """Does the pieces of work that are announced, from number ``begin`` on, as worker ``worker``.

    ``mine`` is the number of the last one that this worker did. Returns when there was none for ``end`` turns, or one
    had no function.
    """

    operands: ClassVar[tuple[str, ...]] = ("words", "mine")

    def write(self, k: Frame) -> None:
        from bareconv.kernels.cpu.emit import I64

        b, words, mine = k.b, k.operand("words", I64).base, k.operand("mine", I64).base
        number, going = b.variable(k.begin), b.variable(b.index(1))
        for _ in b.repeat_while(lambda: going.value > 0):
            turns = b.variable(b.index(0))
            for _ in b.repeat_while(lambda: (words.load_shared(_BEGUN) < number.value) & (turns.value < k.end)):  # noqa: B023
                turns.value = turns.value + 1
                b.pause()
                with b.when((turns.value % SPINS).equals(0)):
                    b.give_way()
            going.value = b.index(0)
            with b.when(words.load_shared(_BEGUN) >= number.value):
                function = words.load(_FUNCTION)
                with b.when(function.compare("!=", 0)):
                    arguments = [b.opaque(words.load(_TABLE)), words.load(_FIRST), b.index(0), k.worker, b.index(0)]
                    b.call(function, arguments)
                    going.value = b.index(1)
                mine.store(number.value)
                (words + _DONE).add_shared(1)
                number.value = number.value + 1


@dataclass(frozen=True)
class Announce(Kernel):
    """Adds one to the word, after all that was written before."""

    operands: ClassVar[tuple[str, ...]] = ("word",)

    def write(self, k: Frame) -> None:
        from bareconv.kernels.cpu.emit import I64

        k.operand("word", I64).base.add_shared(1)


@dataclass(frozen=True)
class WaitFor(Kernel):
    """Returns when the word is ``begin`` or more."""

    operands: ClassVar[tuple[str, ...]] = ("word",)

    def write(self, k: Frame) -> None:
        from bareconv.kernels.cpu.emit import I64

        b = k.b
        word, turns = k.operand("word", I64).base, b.variable(b.index(0))
        for _ in b.repeat_while(lambda: word.load_shared() < k.begin):
            turns.value = turns.value + 1
            b.pause()
            with b.when(turns.value > SPINS):
                b.give_way()


class Workers:
    """``count`` workers: the caller's thread is number 0, the others wait for work. For one caller at a time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._number = 0  # of pieces of work so far
        self._board = _Board()
        self._mine = _Worker(self._board, 0)
        self._helpers = [_Helper(self._board, number) for number in range(1, count)]
        # A program that ends without closing must not wait for threads that wait for it.
        self._finalizer = weakref.finalize(self, _stop, self._board, self._helpers)

    def run(self, function: int, table: int, first: int) -> None:
        """Call machine code at ``function`` as (table, first, 0, worker, 0) on all workers; returns when all have."""
        if not self._finalizer.alive:
            raise BareconvError("the workers have been closed")
        self._number += 1
        try:
            self._take_part(function, table, first)
        except BaseException:  # Ctrl-C, which waits for machine code but not for Python: no worker may wait for ever
            self._finish(function, table, first)
            raise

    def _take_part(self, function: int, table: int, first: int) -> None:
        """What is still to be done of the piece of work at hand. Done again, it changes nothing."""
        self._board.announce(self._number, function, table, first)
        for helper in self._helpers:
            if helper.asleep:
                helper.wake()
        self._mine.serve(lookout=0)
        if self._helpers:
            self._board.wait_until_done(self._number * self.count)

    def _finish(self, function: int, table: int, first: int) -> None:
        """The same, however often it is interrupted."""
        while True:
            try:
                self._take_part(function, table, first)
                return
            except KeyboardInterrupt:
                continue

    def close(self) -> None:
        """End the threads."""
        self._finalizer()


class _Board:
    """Where work is announced to all workers at once, and they say that it is done."""

    def __init__(self) -> None:
        self.words = np.zeros(16, np.int64)
        self._tables = [operands(self.words[at:]) for at in (_BEGUN, _DONE)]
        self._begun, self._done = (table.ctypes.data for table in self._tables)  # looked up once: it takes a while
        self._announce, self._wait = native(Announce), native(WaitFor)

    def announce(self, number: int, function: int, table: int, first: int) -> None:
        """Piece of work ``number``, once; 0 for a function: the end."""
        if self.words.item(_BEGUN) < number:
            self.words[_FUNCTION : _FIRST + 1] = function, table, first
            self._announce(self._begun, 0, 0, 0, 0)

    def wait_until_done(self, times: int) -> None:
        """Return when workers have done a piece of work so many times, all in all."""
        self._wait(self._done, times, 0, 0, 0)


class _Worker:
    """Does what is announced. ``mine``: the number of the last piece of work that it did."""

    def __init__(self, board: _Board, number: int) -> None:
        self._board, self._number = board, number
        self.mine = np.zeros(8, np.int64)
        self._operands, self._serve = operands(board.words, self.mine), native(Serve)
        self._table = self._operands.ctypes.data

    def serve(self, lookout: int) -> None:
        """Do what is announced, and look out for more for so many turns."""
        self._serve(self._table, self.mine.item(0) + 1, lookout, self._number, 0)

    @property
    def idle(self) -> bool:
        """Whether it has done all that was announced."""
        return bool(self._board.words.item(_BEGUN) == self.mine.item(0))

    @property
    def ended(self) -> bool:
        """Whether the end was announced, and it has come to it."""
        return self.idle and self.mine.item(0) > 0 and self._board.words.item(_FUNCTION) == 0


class _Helper:
    """A thread that serves: in machine code as long as there is work, then asleep until there is more."""

    def __init__(self, board: _Board, number: int) -> None:
        self._worker = _Worker(board, number)
        self.asleep = False  # or about to be
        self._wake = threading.Lock()  # released once or more: it wakes, or does not fall asleep
        self._wake.acquire()
        threading.Thread(target=self._loop, name=f"bareconv worker {number}", daemon=True).start()

    def wake(self) -> None:
        """After an announcement: see that someone is awake for it."""
        with contextlib.suppress(RuntimeError):  # it has been released
            self._wake.release()

    def _loop(self) -> None:
        worker = self._worker
        while not worker.ended:
            worker.serve(LOOKOUT)
            self.asleep = True
            # Work that has come by now may have come before the note: it is looked for once more.
            if worker.idle and not worker.ended:
                self._wake.acquire()
            self.asleep = False


def _stop(board: _Board, helpers: list[_Helper]) -> None:
    board.announce(int(board.words[_BEGUN]) + 1, 0, 0, 0)
    for helper in helpers:
        helper.wake()
