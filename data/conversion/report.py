"""The report of a conversion."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from ..formats.encoded import BadEntry

SHOWN = 20  # unreadable images that are printed


@dataclass
class Report:
    """The result of a conversion.

    Args:
        classes: number of classes, or of pairs for a target of pairs.
        images: number of images written, or readable.
        bytes: size of these images, encoded.
        unreadable: the images that cannot be read.
        remarks: sentences for the user.
    """

    classes: int
    images: int
    bytes: int
    unreadable: list[BadEntry]
    remarks: list[str] = field(default_factory=list)


def print_report(
    report: Report, target: str | None, screen: Console, *, unit: str = "classes", list_all: bool = False
) -> None:
    """Print a report.

    Args:
        target: the target; None if nothing was written.
        unit: name of what `report.classes` counts.
        list_all: print all unreadable images instead of the first.
    """
    screen.print(str(target or "Nothing written"), style="italic", highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    for name, value in (
        (unit, f"{report.classes:,}"),
        ("images", f"{report.images:,}"),
        ("bytes", f"{report.bytes:,}"),
        ("unreadable", f"{len(report.unreadable):,}"),
    ):
        table.add_row(name, value)
    screen.print(table)
    shown = report.unreadable if list_all else report.unreadable[:SHOWN]
    for bad in shown:
        screen.print(f"unreadable: {bad.key}: {bad.reason}", highlight=False, soft_wrap=True)
    if len(report.unreadable) > len(shown):
        screen.print(f"and {len(report.unreadable) - len(shown):,} more; on_corrupt=list lists all")
    for remark in report.remarks:
        screen.print(remark, highlight=False, soft_wrap=True)
