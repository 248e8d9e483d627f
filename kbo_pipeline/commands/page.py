"""The page of `kbo show`: an enterprise as rich draws it.

All texts that come from KBO go through `sanitize` and into `Text`: they are data, not markup.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kbo_pipeline.core.text import sanitize
from kbo_pipeline.read.types import (
    Activity,
    Enterprise,
    Entity,
    HistoryEvent,
    Term,
)

_ROWS_SHOWN = 50
"""Names, addresses, contacts and activities of one number that are shown without --all."""

_CHANGES = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def page(enterprise: Enterprise, most: int | None) -> Group:
    """All that is known of an enterprise, from top to bottom.

    Args:
        enterprise: what to show.
        most: establishment units, and events of its history, that are shown; None for all.
    """
    return Group(*_sections(enterprise, most))


def _sections(enterprise: Enterprise, most: int | None) -> Iterator[RenderableType]:
    yield _header(enterprise)
    few = None if most is None else _ROWS_SHOWN
    names = [(name.type, name.text, name.language) for name in enterprise.names]
    addresses = [
        (a.type, a, a.struck_off and f"struck off on {a.struck_off}") for a in enterprise.addresses
    ]
    contacts = [(contact.type, contact.value) for contact in enterprise.contacts]
    yield from _section("Names", _limited(names, few))
    yield from _section("Addresses", _limited(addresses, few))
    yield from _section("Contacts", _limited(contacts, few))
    yield from _section("Activities", _limited(enterprise.activities, few, _activities))
    units = enterprise.establishments
    show_units = partial(_units, few=few)
    yield from _section(f"Establishment units ({len(units)})", _limited(units, most, show_units))
    branches = enterprise.branches
    yield from _section(f"Branches ({len(branches)})", _limited(branches, most, show_units))
    yield from _section("History", _limited(enterprise.history, most, _history))
    yield Text(f"\n{sanitize(enterprise.extract.source)} ({enterprise.extract.key})", "dim")


def _header(enterprise: Enterprise) -> Panel:
    facts = Table.grid(padding=(0, 2))
    form = " / ".join(str(term) for term in (enterprise.form, enterprise.form_cac) if term)
    for label, value in (
        ("number", f"{enterprise.number}   VAT {enterprise.vat_number}"),
        ("status", enterprise.status),
        ("situation", enterprise.situation),
        ("form", form or enterprise.type),
        ("since", enterprise.start_date),
    ):
        if value:
            facts.add_row(Text(label, "dim"), Text(sanitize(value)))
    return Panel(facts, title=Text(sanitize(enterprise.name), "bold"), title_align="left")


def _section(title: str, lines: Iterable[RenderableType]) -> Iterator[RenderableType]:
    """A title and the lines below it; nothing if there are none."""
    below = list(lines)
    if below:
        yield Text(f"\n{title}", "bold")
        yield from below


def _grid(rows: Iterable[tuple[object, ...]]) -> Iterator[Table]:
    """A table without lines, its first column dim; nothing if it has no rows."""
    grid = Table.grid(padding=(0, 2))
    for first, *others in rows:
        grid.add_row(Text(f"  {_cell(first)}", "dim"), *(Text(_cell(value)) for value in others))
    if grid.row_count:
        yield grid


def _cell(value: object) -> str:
    return "" if value is None else sanitize(value)


def _limited(
    rows: Sequence[Any],
    most: int | None,
    shown: Callable[[Sequence[Any]], Iterator[RenderableType]] = _grid,
) -> Iterator[RenderableType]:
    """The first rows, and how many more there are: a row takes a terminal half a millisecond."""
    yield from shown(rows[:most])
    if most is not None and len(rows) > most:
        yield Text(f"  and {len(rows) - most:,} more: --all shows them", "dim")


def _activities(activities: Iterable[Activity]) -> Iterator[RenderableType]:
    for version, same in groupby(activities, key=lambda activity: activity.nace_version):
        yield Text(f"  NACE {_cell(version)}", "cyan")
        yield from _grid(
            (a.classification, a.nace and a.nace.code, _meaning(a.nace), a.group) for a in same
        )


def _meaning(term: Term | None) -> str | None:
    return None if term is None else term.text or "(not in the code list)"


def _units(units: Sequence[Entity], few: int | None) -> Iterator[RenderableType]:
    for unit in units:
        since = f"since {unit.start_date}" if unit.start_date else None
        name = unit.name if unit.name != unit.number else None
        title = Text("  ").append(unit.number, "cyan")
        for part in (name, *unit.addresses[:1], since):
            if part:
                title.append(f"  {sanitize(part)}")
        yield title
        newest = unit.activities[0].nace_version if unit.activities else None
        seen = {
            a.nace.code: _meaning(a.nace)
            for a in unit.activities
            if a.nace and a.nace_version == newest
        }
        others = [n.text for n in unit.names if n.text and n.text != unit.name]
        rows = [
            *(("  also", text) for text in others),
            *((f"  {_cell(c.type)}", c.value) for c in unit.contacts),
            *((f"  {code}", text) for code, text in seen.items()),
        ]
        yield from _limited(rows, few)


def _history(events: Sequence[HistoryEvent]) -> Iterator[RenderableType]:
    for (number, date), same in groupby(events, lambda e: (e.extract_number, e.snapshot_date)):
        yield Text(f"  {date}  extract {number}", "cyan")
        grid = Table.grid(padding=(0, 1))
        for event in same:
            sign, style = _CHANGES[event.change]
            texts = (sanitize(text) for text in (event.before, event.after) if text is not None)
            words = " → ".join(text or "nothing" for text in texts)
            grid.add_row(Text(f"    {sign}", style), Text(event.table, "dim"), Text(words))
        yield grid
