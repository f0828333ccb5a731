"""What a plan has chosen: a row for every call of a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One call: what it is for, its kernel, its work, seconds so far (None: not measured).

    ``flops`` of an image, on a CPU as executed; ``bytes`` of an image that must at least be moved, 0 where unknown.
    """

    node: str
    phase: str
    kernel: str
    how: str
    flops: int
    seconds: float | None
    bytes: int = 0


@dataclass(frozen=True)
class Explanation:
    """What ``plan.explain()`` returns; ``str()`` of it is a table."""

    title: str
    rows: tuple[Row, ...]
    waiting: float  # seconds that a thread has waited for others
    memory_bytes: int

    @property
    def fallbacks(self) -> list[Row]:
        """What no kernel covers."""
        return [row for row in self.rows if row.kernel == "Python"]

    def __str__(self) -> str:
        total = sum(row.seconds or 0.0 for row in self.rows) + self.waiting
        head = ("phase", "node", "kernel", "how", "FLOPs/image", "share of time")
        cells = [head]
        for row in self.rows:
            share = f"{(row.seconds or 0.0) / total:.1%}" if total > 0 else ""
            cells.append((row.phase, row.node, row.kernel, row.how, f"{row.flops:,}" if row.flops else "", share))
        if total > 0:
            cells.append(("", "", "waiting", "for other threads", "", f"{self.waiting / total:.1%}"))
        widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
        lines = ["  ".join(_justify(i, cell, widths[i]) for i, cell in enumerate(line)).rstrip() for line in cells]
        rule = "-" * max(map(len, lines))
        note = f"memory of a step: {self.memory_bytes / 2**20:.1f} MiB"
        return "\n".join([self.title, rule, lines[0], rule, *lines[1:], rule, note])


def _justify(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column < 4 else cell.rjust(width)
