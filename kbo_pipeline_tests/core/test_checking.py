"""Checks: each finds what it is about and nothing else; an error keeps an extract from readers."""

import contextlib
import datetime
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.core.errors import CheckFailedError, NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES
from kbo_pipeline.publish.checks import CHECKS
from kbo_pipeline.publish.publish import CheckResult, check_published
from kbo_pipeline.read.comparison import is_anomalous
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.sound import (
    CODES,
    DATE,
    Register,
    activity_row,
    address_row,
    branch,
    enterprise,
    enterprise_row,
    establishment,
    update,
)
from kbo_pipeline_tests.support.zips import Row, snapshot_date, write_extract

FULL, UPDATE, LATER_FULL = (
    ExtractKey(140, "full"),
    ExtractKey(141, "update"),
    ExtractKey(141, "full"),
)
PLACES = [(c.name, t.name if t else None) for c in CHECKS for t in c.tables]


@pytest.fixture
def core(tmp_path: Path) -> Core:
    return Core(tmp_path / "core", batch_rows=10, max_loss_percent=2.0, max_loss_percent_full=5.0)


@pytest.fixture(scope="module")
def after_full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the Full of nothing wrong published."""
    directory = tmp_path_factory.mktemp("after the Full")
    core = Core(directory / "core", batch_rows=10)
    core.import_zip(write_extract(directory, FULL, Register().rows))
    assert failed(core.checks) == {}
    return core.directory


@pytest.fixture
def published(core: Core, after_full: Path) -> Core:
    shutil.copytree(after_full, core.directory)
    return core


def failed(results: Sequence[CheckResult]) -> dict[tuple[str, str | None], int]:
    """How many rows each failed check found, by its name and the name of its table."""
    return {
        (result.check.name, result.table.name if result.table else None): result.found.count
        for result in results
        if not result.passed
    }


def result_of(core: Core, check: str, table: str | None) -> CheckResult:
    """What a check found at the newest publication."""
    (result,) = [
        r
        for r in core.checks
        if r.check.name == check and (r.table.name if r.table else None) == table
    ]
    return result


def apply_all(core: Core, zip_file: Path) -> ExtractKey:
    """Stages an extract and applies all its batches, without publishing it."""
    key = core.stage(zip_file).extract.key
    with core.applying(key) as (register, staged):
        for batch in staged.batches:
            register.apply(staged, batch)
    return key


@contextlib.contextmanager
def at_work(core: Core) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens the register at work for writing, as nobody but a test does."""
    with duckdb.connect(str(core.register_file)) as connection:
        yield connection


def standing(core: Core) -> tuple[object, ...]:
    """What readers have, and the ledger's word on the newest extract at work."""
    with core.read() as reader:
        jobs = reader.execute("SELECT id, status FROM import_jobs ORDER BY id").fetchall()
    with at_work(core) as connection:
        row = connection.execute(
            "SELECT id, status, error_message FROM import_jobs ORDER BY extract_number DESC LIMIT 1"
        ).fetchone()
    return core.content_hash(), jobs, row


def test_nothing_is_wrong_with_right_data_and_every_check_says_so(
    published: Core, tmp_path: Path
) -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    new = enterprise(7)
    published.import_zip(
        update(
            tmp_path,
            UPDATE,
            {
                "enterprise": [enterprise_row(enterprise(0), None), enterprise_row(new)],
                "establishment": [(establishment(7), DATE, new)],
                "address": [address_row(new), address_row(establishment(7))],
            },
            {"enterprise": [enterprise(0)], "contact": [enterprise(1)]},
        )
    )
    assert failed(published.checks) == {}
    found = [(r.check.name, r.table.name if r.table else None) for r in published.checks]
    assert found == PLACES
    part = "rows of the 4 entities that 0141-update changes"  # enterprise 0, 1, 7, establishment 7
    counted = ("rows_set_aside", "ledger_equals_rows", "date_in_order", "usual_change", "loss")
    for result in published.checks:
        is_whole = result.check.name in counted or result.table is CODE
        assert result.found.looked_at == ("all rows" if is_whole else part)
    with duckdb.connect(":memory:") as connection:
        key, results = check_published(
            connection, published.readers, max_loss_percent=2.0, max_loss_percent_full=5.0
        )
    assert (key, failed(results)) == (UPDATE, {})
    assert {r.found.looked_at for r in results} == {"all rows"}


EDGE = snapshot_date(141) + datetime.timedelta(days=400)
DAY = datetime.timedelta(days=1)
Case = tuple[
    dict[str, list[Row]], dict[str, list[str]], dict[tuple[str, str | None], int]
]  # what an Update inserts and deletes, and how many rows each check finds
WARNINGS: dict[str, Case] = {
    "an address of nobody": (
        {"address": [address_row(enterprise(50))]},
        {},
        {("belongs_to_current_entity", "address"): 1},
    ),
    "a name, two contacts, an activity of nobody": (
        {
            "denomination": [(branch(50), "2", "001", "A")],
            "contact": [(enterprise(50), "ENT", "TEL", str(n)) for n in range(2)],
            "activity": [activity_row(establishment(50))],
        },
        {},
        {
            ("belongs_to_current_entity", "denomination"): 1,
            ("belongs_to_current_entity", "contact"): 2,
            ("belongs_to_current_entity", "activity"): 1,
        },
    ),
    "an establishment unit and a branch of no enterprise": (
        {
            "establishment": [(establishment(8), DATE, enterprise(50))],
            "branch": [(branch(8), DATE, enterprise(51))],
        },
        {},
        {
            ("belongs_to_current_entity", "establishment"): 1,
            ("belongs_to_current_entity", "branch"): 1,
        },
    ),
    "an enterprise that goes without what it has": (
        {},
        {"enterprise": [enterprise(2)]},
        {
            ("belongs_to_current_entity", table): 1
            for table in (
                *("establishment", "branch", "denomination", "address", "contact", "activity"),
            )
        },
    ),
    "an establishment unit that goes without its activity": (
        {},
        {"establishment": [establishment(1)]},
        {("belongs_to_current_entity", "activity"): 1},
    ),
    "FAX": (
        {"contact": [(enterprise(n), "ENT", "FAX", "02 124") for n in range(3)]},
        {},
        {("codes_known", "contact"): 3},
    ),
    "a NACE code of another version, and one without a version": (
        {"activity": [activity_row(enterprise(0), "2025"), activity_row(enterprise(1), "", "1")]},
        {},
        {("codes_known", "activity"): 2},
    ),
    "a code that code has no more": (
        {"code": [row for row in CODES if row[0] != "TypeOfAddress"]},
        {},
        {("codes_known", "address"): 7},
    ),
    "wrong check digits": (
        {
            "enterprise": [enterprise_row("0200.065.766")],
            "establishment": [("2.000.000.100", DATE, "0200.065.766")],
        },
        {},
        {("check_digits", "enterprise"): 1, ("check_digits", "establishment"): 2},
    ),
    "right check digits": ({"enterprise": [enterprise_row("0200.065.765")]}, {}, {}),
    "dates at the bounds": (
        {
            "enterprise": [
                enterprise_row(enterprise(8), datetime.date(1750, 1, 1)),
                enterprise_row(enterprise(9), EDGE),
            ]
        },
        {},
        {},
    ),
    "dates out of bounds": (
        {
            "enterprise": [enterprise_row(enterprise(8), datetime.date(1749, 12, 31))],
            "establishment": [(establishment(8), EDGE + 2 * DAY, enterprise(1))],
            "branch": [(branch(8), datetime.date(1, 1, 1), enterprise(1))],
            "address": [address_row(enterprise(1), datetime.date(9999, 12, 31))],
        },
        {},
        {
            ("dates_plausible", table): 1
            for table in ("enterprise", "establishment", "branch", "address")
        },
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_an_update_that_brings_something_doubtful_is_published_with_a_warning(
    published: Core, tmp_path: Path, case: str
) -> None:
    inserts, deletes, expected = WARNINGS[case]
    published.import_zip(update(tmp_path, UPDATE, inserts, deletes))
    assert failed(published.checks) == expected
    for result in published.checks:
        if not result.passed:
            assert result.severity == "warning"
            assert 1 <= len(result.found.sample) <= 10
            assert all(len(row) == len(result.found.columns) for row in result.found.sample)
    # What a warning was about stays: the next Update does not touch it, but all rows show it.
    codes = {"code": inserts.get("code", CODES)}
    published.import_zip(update(tmp_path, ExtractKey(142, "update"), codes))
    with duckdb.connect(":memory:") as connection:
        _, results = check_published(
            connection, published.readers, max_loss_percent=2.0, max_loss_percent_full=5.0
        )
    assert failed(results) == expected


@pytest.mark.parametrize("case", WARNINGS)
def test_a_full_that_brings_something_doubtful_is_published_with_a_warning(
    core: Core, tmp_path: Path, case: str
) -> None:
    inserts, deletes, expected = WARNINGS[case]
    rows = Register().rows
    for name, keys in deletes.items():
        rows[name] = [row for row in rows[name] if row[0] not in keys]
    for name, more in inserts.items():
        rows[name] = more if name == "code" else [*rows[name], *more]
    core.import_zip(write_extract(tmp_path, LATER_FULL, rows))
    assert failed(core.checks) == expected


def test_a_result_shows_what_is_wrong_and_ten_rows_at_most(published: Core, tmp_path: Path) -> None:
    contacts: list[Row] = [
        (enterprise(n), whose, "FAX", "02 124") for n, whose in ((2, "ENT"), (1, None))
    ]
    addresses = [address_row(enterprise(n)) for n in range(50, 70)]
    published.import_zip(update(tmp_path, UPDATE, {"contact": contacts, "address": addresses}))
    fax = result_of(published, "codes_known", "contact")
    assert str(fax) == "contact: 2 values with a code that is not in code"
    assert fax.found.columns == ("column_name", "category", "code", "example", "rows_with")
    assert fax.found.sample == (("contact_type", "ContactType", "FAX", enterprise(1), 2),)
    orphans = result_of(published, "belongs_to_current_entity", "address").found
    assert (orphans.count, len(orphans.sample)) == (20, 10)
    assert orphans.sample[0] == ("entity_number", enterprise(50))


ERRORS = {
    "two current rows": (
        "INSERT INTO branch SELECT id, DATE '2002-01-01', enterprise_number, _snapshot_date, 141,"
        " NULL, true FROM branch WHERE id = '9.000.000.007'",
        ("one_current_row", "branch"),
        "branch: 1 values of id with more than one current row",
    ),
    "a version twice": (
        "INSERT INTO contact SELECT * FROM contact WHERE _extract_number = 141",
        ("no_overlapping_versions", "contact"),
        "contact: 1 row versions that overlap",
    ),
    "a version over an older one": (
        "INSERT INTO denomination SELECT * REPLACE (141 AS _extract_number) FROM denomination"
        " WHERE _is_current AND entity_number IN (SELECT entity_number FROM contact"
        " WHERE _extract_number = 141)",
        ("no_overlapping_versions", "denomination"),
        "denomination: 1 row versions that overlap",
    ),
    "a version that ends before it begins": (
        "UPDATE contact SET _deleted_at_extract = 141, _is_current = false"
        " WHERE _extract_number = 141",
        ("no_overlapping_versions", "contact"),
        "contact: 1 row versions that overlap",
    ),
    "a version that is current and closed": (
        "UPDATE contact SET _is_current = false WHERE _extract_number = 141",
        ("no_overlapping_versions", "contact"),
        "contact: 1 row versions that overlap",
    ),
    "a row that is gone": (
        "DELETE FROM contact WHERE _extract_number = 141",
        ("ledger_equals_rows", None),
        "ledger: contact: rows opened: the ledger says 1, there are 0",
    ),
    "a closing that is gone": (
        "UPDATE address SET _deleted_at_extract = NULL, _is_current = true"
        " WHERE _deleted_at_extract = 141",
        ("ledger_equals_rows", None),
        "ledger: address: rows closed: the ledger says 1, there are 0",
    ),
    "a ledger row that is gone": (
        "DELETE FROM import_job_batches WHERE job_id = '0141-update' AND table_name = 'activity'"
        " AND operation = 'delete' AND batch_number = 1",
        ("ledger_equals_rows", None),
        "ledger: activity: batches (delete): the ledger says 0, there are 1",
    ),
    "a ledger row that counts wrong": (
        "UPDATE import_job_batches SET records_count = 5 WHERE job_id = '0141-update'"
        " AND table_name = 'branch' AND operation = 'insert'",
        ("ledger_equals_rows", None),
        "ledger: branch: rows (insert): the ledger says 5, there are 1",
    ),
}


@pytest.fixture
def applied(published: Core, tmp_path: Path) -> Core:
    """An Update of a batch is applied and not published."""
    core = published
    inserts: dict[str, list[Row]] = {
        "contact": [(enterprise(1), "ENT", "TEL", "02 999")],
        "branch": [(branch(7), DATE, enterprise(1))],
    }
    deletes = {"address": [establishment(0)], "contact": [enterprise(1)]}
    apply_all(core, update(tmp_path, UPDATE, inserts, deletes))
    return core


@pytest.mark.parametrize("case", ERRORS)
def test_a_register_that_contradicts_itself_is_not_published(applied: Core, case: str) -> None:
    damage, place, text = ERRORS[case]
    readers, jobs, _ = standing(applied)
    with at_work(applied) as connection:
        connection.execute(damage)
    for _ in range(2):
        with pytest.raises(CheckFailedError) as error:
            applied.publish(UPDATE)
        assert str(error.value).startswith(f"{UPDATE}: not published: {text}")
        assert str(error.value).endswith(f"; kbo rollback {UPDATE} undoes it")
        assert not error.value.transient
        assert next(iter(failed(applied.checks))) == place
        assert standing(applied) == (readers, jobs, (str(UPDATE), "failed", str(error.value)))
    applied.rollback(UPDATE)
    with applied.read() as reader:
        newest = reader.execute("SELECT id FROM import_jobs WHERE status = 'completed'").fetchall()
    assert newest == [(str(FULL),)]


def test_an_extract_is_published_once_the_cause_is_mended(
    applied: Core, tmp_path: Path, after_full: Path
) -> None:
    with at_work(applied) as connection:
        connection.execute("UPDATE contact SET _is_current = false WHERE _extract_number = 141")
    with pytest.raises(CheckFailedError):
        applied.publish(UPDATE)
    with at_work(applied) as connection:
        connection.execute("UPDATE contact SET _is_current = true WHERE _extract_number = 141")
    assert not applied.publish(UPDATE).already_published
    assert failed(applied.checks) == {}
    other = Core(tmp_path / "other", batch_rows=10)
    shutil.copytree(after_full, other.directory)
    other.import_zip(next(tmp_path.glob("*_0141_*.zip")))
    assert applied.content_hash() == other.content_hash()
    with applied.read() as reader, other.read() as second:
        job = "SELECT status, error_message, names_resolved FROM import_jobs WHERE id = $id"
        found = [r.execute(job, {"id": str(UPDATE)}).fetchall() for r in (reader, second)]
    assert found[0] == found[1]


def test_a_full_must_be_what_the_register_holds_after_it(core: Core, tmp_path: Path) -> None:
    apply_all(core, write_extract(tmp_path, FULL, Register().rows))
    with at_work(core) as connection:
        connection.execute(
            "INSERT INTO contact SELECT * REPLACE ('more' AS value) FROM contact LIMIT 1"
        )
    text = "ledger: contact: current rows: the ledger says 3, there are 4"
    with pytest.raises(CheckFailedError, match=text):
        core.publish(FULL)
    assert not core.database.exists()


def test_batches_that_were_staged_again_in_another_cut_agree_with_the_ledger(
    published: Core, tmp_path: Path
) -> None:
    zip_file = write_extract(tmp_path, LATER_FULL, Register(6).rows)
    published.stage(zip_file)
    with published.applying(LATER_FULL) as (register, staged):
        assert len(staged.batches) > 2
        for batch in staged.batches[:2]:
            register.apply(staged, batch)
    published.batch_rows = 1000
    published.import_zip(zip_file)
    assert failed(published.checks) == {}


LOST = "lost ({:.1f} %), more than KBO_MAX_LOSS_PERCENT ({:g})"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a Full of 1000 enterprises published."""
    directory = tmp_path_factory.mktemp("large")
    core = Core(directory / "core", batch_rows=10_000)
    core.import_zip(write_extract(directory, FULL, Register(1000).rows))
    return core.directory


@pytest.mark.parametrize(
    ("contacts", "added", "limit", "stops"),
    [
        (20, 0, 2.0, False),  # not more than 2 %
        (21, 0, 2.0, True),
        (21, 1, 2.0, False),  # net
        (21, 0, 2.1, False),
        (19, 0, 0.0, False),  # few rows say nothing
        (20, 0, 0.0, True),
        (1000, 0, 99.9, True),
        (1000, 0, 100.0, False),
    ],
)
def test_an_update_that_takes_away_many_rows_waits_until_somebody_accepts_it(
    core: Core, large: Path, tmp_path: Path, contacts: int, added: int, limit: float, stops: bool
) -> None:
    shutil.copytree(large, core.directory)
    core.max_loss_percent = limit
    inserts: dict[str, list[Row]] = {
        "contact": [(enterprise(n), "ENT", "TEL", "new") for n in range(added)]
    }
    deletes = {"contact": [enterprise(n) for n in range(contacts)]}
    key = apply_all(core, update(tmp_path, UPDATE, inserts, deletes))
    before = standing(core)
    if stops:
        for _ in range(2):
            with pytest.raises(CheckFailedError) as error:
                core.publish(key)
            assert str(error.value) == (
                f"{key}: not published: contact: {contacts:,} of 1,000 rows"
                f" {LOST.format(contacts / 10, limit)}; kbo publish {key} --accept-loss publishes"
                f" it, or kbo rollback {key} undoes it"
            )
            assert standing(core)[:2] == before[:2]
    expected = {("loss", "contact"): contacts} if stops else {}
    for again in (False, True):  # once more, as after a crash: it says the same, and stops nothing
        published = core.publish(key, accept_loss=stops and not again)
        assert published.already_published is again
        assert failed(core.checks) == expected
        loss = result_of(core, "loss", "contact")
        assert (loss.blocks, loss.is_accepted) == (False, stops)
    with duckdb.connect(":memory:") as connection:  # and so by hand
        _, results = check_published(
            connection, core.readers, max_loss_percent=limit, max_loss_percent_full=limit
        )
    assert failed(results) == expected
    assert not any(result.blocks for result in results)


def test_only_the_loss_can_be_accepted(core: Core, large: Path, tmp_path: Path) -> None:
    shutil.copytree(large, core.directory)
    deletes = {"contact": [enterprise(n) for n in range(500)]}
    key = apply_all(core, update(tmp_path, UPDATE, {}, deletes))
    with at_work(core) as connection:
        connection.execute("UPDATE branch SET _deleted_at_extract = 141")
    with pytest.raises(CheckFailedError) as error:
        core.publish(key, accept_loss=True)
    assert "--accept-loss" not in str(error.value)
    with pytest.raises(CheckFailedError, match=r"\(and 1 more\); kbo rollback") as error:
        core.publish(key)
    assert "--accept-loss" not in str(error.value)


def cut(rows: dict[str, list[Row]], kept: dict[str, int]) -> dict[str, list[Row]]:
    """The same rows, of some tables only the first."""
    return rows | {name: rows[name][:count] for name, count in kept.items()}


LESS: dict[str, tuple[dict[str, int], float, tuple[str, ...]]] = {
    "a tenth of every table": (
        dict.fromkeys(Register().rows.keys() - {"branch", "code"}, 100),
        5.0,
        ("enterprise", "establishment", "denomination", "address", "contact", "activity"),
    ),
    "one table is cut": ({"contact": 949}, 5.0, ("contact",)),
    "one table is empty": ({"denomination": 0}, 5.0, ("denomination",)),
    "not more than may be lost": ({"contact": 950, "denomination": 1000}, 5.0, ()),
    "few rows": ({"contact": 981}, 0.0, ()),
    "as many as count": ({"contact": 980}, 0.0, ("contact",)),
    "any loss is allowed": ({"contact": 0}, 100.0, ()),
}


@pytest.mark.parametrize(
    ("what", "number"),  # the next one, and two that bridge a gap
    [
        *((what, 141) for what in LESS),
        ("one table is cut", 160),
        ("not more than may be lost", 160),
    ],
)
def test_a_full_that_takes_away_much_of_what_is_published_waits_until_somebody_accepts_it(
    core: Core, large: Path, tmp_path: Path, what: str, number: int
) -> None:
    shutil.copytree(large, core.directory)
    kept, core.max_loss_percent_full, lost = LESS[what]
    core.max_loss_percent = 0.0  # is not about Fulls
    key = ExtractKey(number, "full")
    zip_file = write_extract(tmp_path, key, cut(Register(1000).rows, kept))
    before = standing(core)
    if not lost:
        core.import_zip(zip_file)
        assert [name for check, name in failed(core.checks) if check == "loss"] == []
        return
    with pytest.raises(CheckFailedError) as error:
        core.import_zip(zip_file)
    assert "more than KBO_MAX_LOSS_PERCENT_FULL (" in str(error.value)
    assert f"kbo publish {key} --accept-loss publishes it" in str(error.value)
    assert {n for check, n in failed(core.checks) if check == "loss"} == {*lost}
    assert {r.table.name for r in core.checks if r.blocks and r.table} == {*lost}
    assert standing(core)[:2] == before[:2]
    core.publish(key, accept_loss=True)
    assert {r.table.name for r in core.checks if r.is_accepted and r.table} == {*lost}
    assert standing(core)[:2] != before[:2]


def test_what_comes_as_well_counts_against_a_loss_of_a_full(
    core: Core, large: Path, tmp_path: Path
) -> None:
    shutil.copytree(large, core.directory)
    rows = Register(1000).rows
    rows["contact"] = [
        *rows["contact"][:500],
        *((n, "ENT", "WEB", "new") for n, *_ in rows["contact"]),
    ]
    core.import_zip(write_extract(tmp_path, LATER_FULL, rows))
    assert [place for place in failed(core.checks) if place[0] == "loss"] == []


def test_a_first_full_takes_nothing_away(core: Core, tmp_path: Path) -> None:
    core.max_loss_percent_full = 0.0
    core.import_zip(write_extract(tmp_path, FULL, Register(100).rows))
    assert failed(core.checks) == {}
    core.rollback(FULL)
    core.import_zip(write_extract(tmp_path, LATER_FULL, Register(5).rows))  # nothing is published
    assert failed(core.checks) == {}


@pytest.mark.parametrize(("days", "warns"), [(-1, True), (-400, True), (0, False), (1, False)])
@pytest.mark.parametrize("key", [UPDATE, LATER_FULL])
def test_data_of_an_earlier_day_than_what_is_published_is_a_warning(
    published: Core, tmp_path: Path, key: ExtractKey, days: int, warns: bool
) -> None:
    day = snapshot_date(FULL.number) + datetime.timedelta(days=days)
    rows = Register().rows if key.type == "full" else {"code": CODES}
    zip_file = write_extract(tmp_path, key, rows, snapshot=day)
    published.import_zip(zip_file)
    assert failed(published.checks) == ({("date_in_order", None): 1} if warns else {})
    found = result_of(published, "date_in_order", None).found
    if warns:
        assert found.text == (
            f"data of {day}, but 0140-full before it has data of {snapshot_date(140)}"
        )


def test_code_is_a_table_that_can_lose_rows_too(core: Core, tmp_path: Path) -> None:
    more: list[Row] = [("Nace2025", f"{n:05d}", "NL", "x") for n in range(30)]
    core.import_zip(write_extract(tmp_path, FULL, Register().with_rows("code", *more).rows))
    key = apply_all(core, update(tmp_path, UPDATE, {}))
    with pytest.raises(CheckFailedError, match=r"code: 30 of 42 rows lost \(71\.4 %\)"):
        core.publish(key)
    with at_work(core) as connection:
        codes = connection.execute("SELECT count(*) FROM code WHERE _is_current").fetchall()
    assert codes == [(42,)]


@pytest.mark.parametrize(
    ("count", "past", "unusual"),
    [
        (1000, [1000, 900, 1100, 950, 1050, 1000, 980, 1020], False),
        (3100, [1000, 900, 1100, 950, 1050, 1000, 980, 1020], True),
        (2900, [1000, 900, 1100, 950, 1050, 1000, 980, 1020], False),  # not three times as many
        (300, [1000, 900, 1100, 950, 1050, 1000, 980, 1020], True),
        (3100, [1000, 900, 1100, 950, 1050, 1000, 980], False),  # seven say nothing
        (3100, [1000, 9_000_000, 1100, 950, 1050, 1000, 980, 1020], True),  # one does not matter
        (3100, [10, 100, 1000, 10_000, 10, 100, 1000, 10_000], False),  # they always vary so much
        (40, [0] * 8, False),  # few rows
        (51, [0] * 8, True),
        (0, [0] * 8, False),
        (0, [60] * 30, True),
    ],
)
def test_what_is_unusual(count: int, past: list[int], unusual: bool) -> None:
    assert is_anomalous(count, past) is unusual


def test_an_update_is_compared_with_those_of_its_weekday(published: Core, tmp_path: Path) -> None:
    def names(number: int, count: int) -> Path:
        rows: list[Row] = [(enterprise(0), "2", "001", f"{number} name {n}") for n in range(count)]
        key = ExtractKey(number, "update")
        return update(tmp_path, key, {"denomination": rows}, {"denomination": [enterprise(0)]})

    published.max_loss_percent = 100
    for number in range(141, 149):
        published.import_zip(names(number, 10))
        assert failed(published.checks) == {}
    weekday = snapshot_date(149) - datetime.timedelta(days=7)
    # Without those of its weekday there is nothing to compare with.
    published.import_zip(names(149, 100))
    assert failed(published.checks) == {}
    published.rollback(ExtractKey(149, "update"))
    with at_work(published) as connection:
        connection.execute(
            "UPDATE import_jobs SET snapshot_date = $date WHERE extract_type = 'update'",
            {"date": weekday},
        )
    published.import_zip(names(149, 100))
    assert failed(published.checks) == {("usual_change", "denomination"): 1}
    unusual = result_of(published, "usual_change", "denomination").found
    assert unusual.text == "100 rows opened, usual are 10"
    assert unusual.sample == (("opened", 100, 10, 8),)


def test_a_full_on_a_filled_register_is_judged_by_what_it_changes(
    published: Core, tmp_path: Path
) -> None:
    rows = Register().rows
    rows["contact"] = [*rows["contact"][1:], (enterprise(0), "ENT", "TEL", "02 999")]
    published.import_zip(write_extract(tmp_path, LATER_FULL, rows))
    looked_at = result_of(published, "belongs_to_current_entity", "contact").found.looked_at
    assert looked_at == "rows of the 1 entities that 0141-full changes"


def test_the_published_register_is_looked_at_by_hand(published: Core, tmp_path: Path) -> None:
    with duckdb.connect(":memory:") as connection:
        only = {("loss", "contact"), ("ledger_equals_rows", None)}
        key, results = check_published(
            connection,
            published.readers,
            max_loss_percent=2.0,
            max_loss_percent_full=5.0,
            only=only,
        )
        assert (key, failed(results)) == (FULL, {})
        assert {(r.check.name, r.table.name if r.table else None) for r in results} == only
        with pytest.raises(NotReadyError, match="nothing is published yet"):
            check_published(
                connection,
                DuckDBFile(tmp_path / "none.duckdb"),
                max_loss_percent=2.0,
                max_loss_percent_full=5.0,
            )
        published.rollback(FULL)
        with pytest.raises(NotReadyError, match="nothing is published yet"):
            check_published(
                connection, published.readers, max_loss_percent=2.0, max_loss_percent_full=5.0
            )


def test_looking_at_what_an_extract_touches_finds_what_looking_at_everything_finds(
    tmp_path: Path,
) -> None:
    """On made-up extracts; what was wrong before an extract is not its own."""
    core = Core(tmp_path / "core", batch_rows=200, max_loss_percent=100)
    before: set[tuple[str, str | None]] = set()
    sample = Sample(enterprises=200, seed=3)
    zips = write_sample(tmp_path, sample, 4)
    later_full = sample.write_full(tmp_path, sample.first_number + 6)
    for zip_file in (*zips, later_full):
        core.import_zip(zip_file)
        part = failed(core.checks)
        with duckdb.connect(":memory:") as connection:
            _, results = check_published(
                connection, core.readers, max_loss_percent=100, max_loss_percent_full=100
            )
        everything = failed(results)
        assert {*everything} - before <= {*part} <= {*everything}
        assert all(count <= everything[place] for place, count in part.items())
        before = {*everything}
    assert {t.name for t in ALL_TABLES} == {t for _, t in PLACES if t is not None}
    assert {t.name for t in TABLES} == {t for c, t in PLACES if c == "loss"} - {"code"}


def test_the_documentation_lists_exactly_the_checks_that_there_are_and_which_stop() -> None:
    text = (REPOSITORY / "docs" / "checks.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    listed = {row[1].strip(" `"): row[4].strip().startswith("**stops**") for row in rows}
    assert listed == {check.name: check.severity == "error" for check in CHECKS}
