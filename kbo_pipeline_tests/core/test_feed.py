"""The feed: events of all extracts in order, cursors, rollbacks, filters."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kbo_pipeline.cli import main
from kbo_pipeline.core.errors import ExtractError, NotFoundError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.read.types import Event
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core, rows_of
from kbo_pipeline_tests.support.feed import Reader, Rows, rows_as_texts
from kbo_pipeline_tests.support.zips import Row, write_extract

DOCUMENTED = (REPOSITORY / "docs" / "certainty.md").read_text()
KBO = Path(sys.executable).with_name("kbo")
BAKER, OTHER, SHOP, LATER = "0200.065.765", "0200.068.636", "2.000.000.339", "0403.449.823"
BEGAN = date(2001, 2, 3)
AT_FIRST: dict[str, list[Row]] = {
    "enterprise": [
        (BAKER, "AC", "000", "2", "014", None, BEGAN),
        (OTHER, "AC", "000", "2", "014", None, BEGAN),
    ],
    "establishment": [(SHOP, BEGAN, BAKER)],
    "denomination": [(BAKER, "1", "001", "Boulangerie"), (SHOP, "2", "003", "Winkel")],
    "address": [
        (SHOP, "BAET", None, None, "1005", "A", "A", "Straat", "Rue", "2", *[None] * 3),
        (OTHER, "REGO", None, None, "9000", "B", "B", "Laan", "Av", "7", *[None] * 3),
    ],
    "activity": [(BAKER, "001", "2025", "10710", "MAIN"), (BAKER, "001", "2025", "47240", "SECO")],
}
DAYS: dict[int, tuple[dict[str, list[Row]], dict[str, list[str]]]] = {
    141: (
        {
            "enterprise": [(BAKER, "AC", "050", "2", "610", None, BEGAN)],
            "activity": [
                (BAKER, "001", "2025", "10710", "MAIN"),
                (BAKER, "001", "2025", "56101", "SECO"),
            ],
        },
        {"enterprise": [BAKER], "activity": [BAKER]},
    ),
    142: (
        {
            "enterprise": [(LATER, "AC", "000", "2", "014", None, BEGAN)],
            "denomination": [(LATER, "2", "001", "Nieuw"), (SHOP, "2", "003", "Zaak")],
        },
        {"denomination": [SHOP]},
    ),
    143: ({}, {"enterprise": [OTHER], "address": [OTHER]}),
}


def zip_of(directory: Path, number: int, *, day: int | None = None) -> Path:
    """The ZIP of an extract, with what a day brings."""
    directory.mkdir(exist_ok=True)
    if number == 140:
        return write_extract(directory, ExtractKey(140, "full"), AT_FIRST, {})
    inserts, deletes = DAYS[day or number]
    return write_extract(directory, ExtractKey(number, "update"), inserts, deletes)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A register of four extracts."""
    directory = tmp_path_factory.mktemp("feed")
    core = Core(directory / "data")
    for number in (140, *DAYS):
        core.import_zip(zip_of(directory / "zips", number))
    return core


def told(events: Sequence[Event]) -> list[tuple[object, ...]]:
    return [(e.extract_number, e.table, e.kind, e.entity_number, e.before, e.after) for e in events]


def state(core: Core, number: int) -> Rows:
    with core.read() as reader:
        return rows_as_texts({t.name: rows_of(reader, t, f"{t.name}_at({number})") for t in TABLES})


def test_each_event_has_what_changed_by_column(core: Core) -> None:
    with core.read_register() as register:
        events = list(register.changes_since("0140-full"))
    assert told(events)[:4] == [
        (
            *(141, "enterprise", "bankruptcy", BAKER),
            *({"juridical_situation": "000"}, {"juridical_situation": "050"}),
        ),
        (
            *(141, "enterprise", "form", BAKER),
            {"juridical_form": "014", "juridical_form_cac": None},
            {"juridical_form": "610", "juridical_form_cac": None},
        ),
        (
            *(141, "activity", "changed", BAKER),
            *(
                {
                    "activity_group": "001",
                    "nace_version": "2025",
                    "nace_code": code,
                    "classification": "SECO",
                }
                for code in ("47240", "56101")
            ),
        ),
        (
            *(142, "enterprise", "new", LATER, None),
            {
                "status": "AC",
                "juridical_situation": "000",
                "type_of_enterprise": "2",
                "juridical_form": "014",
                "juridical_form_cac": None,
                "start_date": "2001-02-03",
            },
        ),
    ]
    assert [(e.extract, e.table, e.kind, e.entity_number, e.name) for e in events[4:]] == [
        ("0142-update", "denomination", "new", LATER, "Nieuw"),
        ("0142-update", "denomination", "renamed", SHOP, "Zaak"),
        ("0143-update", "enterprise", "stopped", OTHER, OTHER),
        ("0143-update", "address", "stopped", OTHER, OTHER),
    ]
    shop = events[5]
    assert (shop.enterprise_number, shop.before, shop.after) == (
        BAKER,
        {"language": "2", "type_of_denomination": "003", "denomination": "Winkel"},
        {"language": "2", "type_of_denomination": "003", "denomination": "Zaak"},
    )
    assert [event.cursor for event in events] == sorted({event.cursor for event in events})


def test_a_reader_goes_on_behind_any_event_and_has_the_state(core: Core) -> None:
    with core.read_register() as register:
        events = list(register.changes_since(140))
        for place in range(len(events)):
            reader = Reader(state(core, 140), register.cursor(140))
            for event in events[: place + 1]:
                reader.take(event)
            for event in register.changes_since(reader.cursor):
                reader.take(event)
            assert reader.rows == state(core, 143)
        assert list(register.changes_since(register.cursor())) == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"kinds": ["bankruptcy", "renamed"]}, [(141, "enterprise"), (142, "denomination")]),
        ({"tables": ["address"]}, [(143, "address")]),
        ({"number": "BE0403449823"}, [(142, "enterprise"), (142, "denomination")]),
        ({"number": BAKER, "tables": ["denomination"]}, [(142, "denomination")]),
        ({"zipcode": "1005"}, [(142, "denomination")]),
        ({"zipcode": "9000"}, [(143, "enterprise"), (143, "address")]),
        ({"nace": "4724"}, [(141, "enterprise"), (141, "enterprise"), (141, "activity")]),
        ({"nace": "5610", "kinds": ["renamed"]}, [(142, "denomination")]),
        ({"zipcode": "1006"}, []),
    ],
)
def test_filters_leave_out_the_rest(
    core: Core, filters: dict[str, Any], expected: list[tuple[int, str]]
) -> None:
    with core.read_register() as register:
        events = list(register.changes_since(140, **filters))
    assert [(e.extract_number, e.table) for e in events] == expected


@pytest.mark.parametrize("which", ["kinds", "tables"])
def test_an_unknown_kind_or_table_is_named_with_those_that_there_are(
    core: Core, which: str
) -> None:
    with (
        core.read_register() as register,
        pytest.raises(NotFoundError, match=r"'moved to'.*there are .*, "),
    ):
        if which == "kinds":
            register.changes_since(140, kinds=["moved to"])
        register.changes_since(140, tables=["moved to"])


def test_behind_a_rollback_a_reader_is_told_what_is_undone_and_goes_on(tmp_path: Path) -> None:
    core = Core(tmp_path / "data")
    for number in (140, *DAYS):
        core.import_zip(zip_of(tmp_path / "zips", number))
    with core.read_register() as register:
        reader = Reader(state(core, 140), register.cursor(140))
        for event in register.changes_since(140):
            reader.take(event)
        within = next(e.cursor for e in reader.kept if e.extract_number == 142)
    for number in (143, 142):
        core.rollback(ExtractKey(number, "update"))
    with core.read_register() as register:
        (event,) = register.changes_since(reader.cursor)
        assert (event.kind, event.before, event.after) == (
            "rolled_back",
            {"extract": "0143-update"},
            {"extract": "0141-update"},
        )
        assert event.cursor == register.cursor("0141-update")
        (other,) = register.changes_since(within)
        assert (other.extract, other.cursor) == ("0142-update", event.cursor)
        reader.take(event)
        assert reader.rows == state(core, 141)
    core.import_zip(zip_of(tmp_path / "others", 142, day=143))
    with core.read_register() as register:
        (undone, *rest) = register.changes_since(within)
        assert (undone.kind, undone.after) == ("rolled_back", {"extract": "0141-update"})
        assert rest == list(register.changes_since(reader.cursor))
        for event in rest:
            reader.take(event)
        assert reader.rows == state(core, 142)


def test_the_same_zips_give_the_same_events_and_cursors(core: Core, tmp_path: Path) -> None:
    other = Core(tmp_path / "data", batch_rows=1)
    for number in (140, *DAYS):
        other.import_zip(zip_of(tmp_path / "zips", number))
        if number == 142:
            other.rollback(ExtractKey(142, "update"))
            other.import_zip(zip_of(tmp_path / "zips", number))
    with core.read_register() as one, other.read_register() as two:
        assert list(one.changes_since(140)) == list(two.changes_since(140))


def test_a_register_that_begins_later_takes_the_cursors_from_there_on(
    core: Core, tmp_path: Path
) -> None:
    """A Full says what all rows are, so nothing before it matters."""
    other = Core(tmp_path / "data")
    rows: dict[str, list[Row]] = {"enterprise": [(BAKER, *AT_FIRST["enterprise"][0][1:])]}
    core_of_both = Core(tmp_path / "both")
    core_of_both.import_zip(zip_of(tmp_path / "zips", 140))
    full = write_extract(tmp_path / "zips", ExtractKey(150, "full"), {**AT_FIRST, **rows}, {})
    update = zip_of(tmp_path / "zips", 151, day=141)
    for one in (other, core_of_both):
        one.import_zip(full)
        one.import_zip(update)
    with core_of_both.read_register() as both, other.read_register() as later:
        events = list(both.changes_since("0150-full"))
        assert events
        assert [told([e]) for e in later.changes_since(both.cursor(150))] == [
            told([e]) for e in events
        ]
        within = next(iter(both.changes_since(140)))
        assert within.extract == "0150-full"
        with pytest.raises(NotFoundError, match=r"was never in the state at 0150-full"):
            list(later.changes_since(within.cursor))


@pytest.mark.parametrize(
    "text", ["0000000141u.~.", "0000000141u.~.AAA", "0000000141x.~.AAAAAA", "cursor"]
)
def test_a_text_that_is_no_cursor_is_refused(core: Core, text: str) -> None:
    with core.read_register() as register, pytest.raises(ExtractError, match=r"cursor|expected"):
        list(register.changes_since(text))


def invoke(core: Core, *arguments: str) -> Result:
    return CliRunner().invoke(main.commands["changes"], arguments, env=core.settings)


def test_the_command_prints_events_that_lead_on(core: Core) -> None:
    with core.read_register() as register:
        events = [
            json.loads(json.dumps(asdict(e), default=str)) for e in register.changes_since(140)
        ]
    first = invoke(core, "--since", "140", "--json", "--limit", "3")
    lines = [json.loads(line) for line in first.output.splitlines()]
    assert lines == events[:3]
    rest = invoke(core, "--since", lines[-1]["cursor"], "--json")
    assert [json.loads(line) for line in rest.output.splitlines()] == events[3:]
    assert invoke(core, "--since", events[-1]["cursor"], "--json").output == ""


def test_the_command_prints_events_for_people(core: Core) -> None:
    lines = invoke(core, "--since", "0141-update", "--kind", "renamed", "--table", "denomination")
    assert lines.output.splitlines() == [
        "0142-update  denomination renamed  2.000.000.339 Zaak  2 003 Winkel → 2 003 Zaak"
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "EXTRACT"),
        (("0141-update", "--since", "0140-full"), "not both"),
        (("0141-update", "--kind", "moved"), "--since"),
        (("--follow",), "--since"),
    ],
)
def test_the_command_says_what_belongs_together(
    core: Core, arguments: tuple[str, ...], text: str
) -> None:
    result = invoke(core, *arguments)
    assert result.exit_code == 2
    assert text in result.output.splitlines()[-1]


def test_follow_prints_the_next_publication_too(tmp_path: Path) -> None:
    core = Core(tmp_path / "data")
    core.import_zip(zip_of(tmp_path / "zips", 140))
    following = subprocess.Popen(
        [KBO, "changes", "--since", "140", "--follow", "--json", "--limit", "6"],
        env={**os.environ, **core.settings},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for number in (141, 142):
            core.import_zip(zip_of(tmp_path / "zips", number))
        output, _ = following.communicate(timeout=120)
    finally:
        following.kill()
        following.wait()
    assert following.returncode == 0
    with core.read_register() as register:
        assert [json.loads(line)["cursor"] for line in output.splitlines()] == [
            event.cursor for event in register.changes_since(140)
        ]


@pytest.mark.long
def test_the_readers_of_the_documentation_have_each_event_once(tmp_path: Path) -> None:
    """After each extract, a rollback, and another extract in its place."""
    core = Core(tmp_path / "data")
    python, shell = (
        re.search(rf"^```{language}\n(.*?)^```", part, re.DOTALL | re.MULTILINE)
        for language, part in zip(("python", "sh"), DOCUMENTED.split("In a shell,"), strict=True)
    )
    assert python and shell
    environment = {**os.environ, **core.settings, "PATH": f"{KBO.parent}:{os.environ['PATH']}"}
    for number, day in ((140, None), (141, None), (142, None), (142, 143)):
        if day is not None:
            core.rollback(ExtractKey(number, "update"))
        core.import_zip(zip_of(tmp_path / f"zips{day}", number, day=day))
        for program in ([KBO.with_name("python"), "-c", python[1]], ["sh", "-e", "-c", shell[1]]):
            subprocess.run(program, env=environment, cwd=tmp_path, check=True, timeout=60)
        time.sleep(1.1)  # the files of the shell's reader have names of seconds
    with core.read_register() as register:
        expected = [event.cursor for event in register.changes_since(140)]
    with sqlite3.connect(tmp_path / "events.sqlite") as kept:
        assert kept.execute("SELECT cursor FROM event ORDER BY cursor").fetchall() == [
            (cursor,) for cursor in expected
        ]
    kinds = [
        json.loads(line)["kind"]
        for file in sorted((tmp_path / "events").iterdir())
        for line in file.read_text().splitlines()
    ]
    assert kinds.count("rolled_back") == 1
