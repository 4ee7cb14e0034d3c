"""Text tables of the structure of circuits: the strongest rows, and what the columns are."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 15


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A title, a row of names, rows of cells (the first 15), and notes below.

    The first column is aligned left and so is the last, which holds words; numbers are aligned right.

    Example:
        >>> print(table("Degrees", ("unit", "degree", "note"), [("z[0]", "12", ""), ("z[1]", "3", "few")]))
        Degrees
        unit  degree  note
        z[0]      12
        z[1]       3  few
    """
    shown = [header, *rows[:_SHOWN]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(header))]
    last = len(header) - 1
    lines = [title]
    for row in shown:
        cells = [
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if len(rows) > _SHOWN:
        lines.append(f"... and {len(rows) - _SHOWN} more rows: see to_frame()")
    return "\n".join([*lines, *notes])


def number(value: float | None) -> str:
    """Three digits; empty where there is none.

    Example:
        >>> number(1234.5), number(0.00012), number(None), number(20)
        ('1,234', '0.00012', '', '20')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
