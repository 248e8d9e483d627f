"""Staging: every value comes out as it went in, in batches; an unsound file leaves nothing."""

import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kbo_pipeline.core.errors import ExtractError, NotReadyError, RegisterError, StorageError
from kbo_pipeline.core.extracts import Batch, ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.tables import (
    ADDRESS,
    ALL_TABLES,
    BRANCH,
    CODE,
    CONTACT,
    DENOMINATION,
    ENTERPRISE,
    ESTABLISHMENT,
    TABLES,
    Table,
)
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.stage import staging
from kbo_pipeline.stage.faults import Fault, RejectedError
from kbo_pipeline.stage.staged import Staged, discard_staged, staging_file
from kbo_pipeline.stage.staging import stage
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.staged import (
    AWKWARD,
    BAD_DATES,
    UNSOUND,
    good_line,
    number_of,
    spoilt,
    staged_rows,
)
from kbo_pipeline_tests.support.zips import (
    Row,
    csv_field,
    csv_text,
    write_extract,
)

FULL = ExtractKey(140, "full")
UPDATE = ExtractKey(141, "update")


def sound_row(table: Table, number: int = 0) -> Row:
    """A row with nothing but its numbers."""
    key: Row = () if table.columns[0].number else (str(number),)
    rest = table.columns[len(key) :]
    return (*key, *(number_of(c, number) if c.number else None for c in rest))


def key_of(row: Row) -> str:
    """The first value of a row: its key."""
    assert isinstance(row[0], str)
    return row[0]


def parametrize_tables(tables: tuple[Table, ...] = ALL_TABLES) -> pytest.MarkDecorator:
    """Runs a test for each table."""
    return pytest.mark.parametrize("table", tables, ids=lambda table: table.name)


@pytest.fixture(scope="module", params=["\n", "\r\n"], ids=["LF", "CRLF"])
def awkward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A Full and an Update of awkward rows, staged; with both kinds of line ends."""
    directory = tmp_path_factory.mktemp("awkward")
    core = Core(directory)
    deletes = {t.name: [key_of(row) for row in AWKWARD[t.name]] for t in TABLES}
    for key in (FULL, UPDATE):
        members: dict[str, str | bytes | None] = {}
        for table in ALL_TABLES:
            whole = key is FULL or table is CODE
            members[f"{table.name}{'' if whole else '_insert'}.csv"] = with_line_ends(
                table, AWKWARD[table.name], request.param
            )
        core.stage(write_extract(directory, key, AWKWARD, deletes, members=members))
    return core


def with_line_ends(table: Table, rows: list[Row], line_end: str) -> str:
    """A CSV whose records, but not whose values, end in `line_end`."""
    lines = [",".join(f'"{column.csv_name}"' for column in table.columns)]
    lines += [",".join(map(csv_field, table.columns, row)) for row in rows]
    return line_end.join([*lines, ""])


@parametrize_tables()
def test_values_come_out_typed_and_byte_for_byte_in_file_order(table: Table, awkward: Core) -> None:
    for key in (FULL, UPDATE):
        with awkward.staged(key) as (connection, _):
            assert staged_rows(connection, table, "insert") == AWKWARD[table.name]
            types = connection.execute(f"DESCRIBE staging.import_staging_{table.name}").fetchall()
            assert [(name, kind) for name, kind, *_ in types] == [
                ("batch_number", "INTEGER"),
                ("operation", "VARCHAR"),
                ("row_sequence", "BIGINT"),
                *((column.name, column.type) for column in table.columns),
            ]


@parametrize_tables(TABLES)
def test_deletes_hold_the_key_and_nothing_else(table: Table, awkward: Core) -> None:
    with awkward.staged(UPDATE) as (connection, _):
        nothing = (None,) * (len(table.columns) - 1)
        expected = [(key_of(row), *nothing) for row in AWKWARD[table.name]]
        assert staged_rows(connection, table, "delete") == expected


@parametrize_tables()
def test_quoted_empty_and_bare_empty_are_both_no_value(table: Table, tmp_path: Path) -> None:
    rows = [sound_row(table, 1), sound_row(table, 2)]
    lines = [
        [str(value) if value else empty for value in row]
        for row, empty in zip(rows, ("", '""'), strict=True)
    ]
    text = csv_text(table.columns, []) + "".join(",".join(line) + "\n" for line in lines)
    core = Core(tmp_path)
    core.stage(write_extract(tmp_path, FULL, {}, members={f"{table.name}.csv": text}))
    with core.staged(FULL) as (connection, _):
        assert staged_rows(connection, table, "insert") == rows


@parametrize_tables()
@pytest.mark.parametrize("bare", [False, True], ids=["quoted", "bare"])
def test_a_last_line_without_a_line_feed_is_kept(table: Table, bare: bool, tmp_path: Path) -> None:
    rows = [sound_row(table, n) for n in range(3)]
    text = csv_text(table.columns, rows).rstrip("\n")
    if bare:
        text = text.replace('""', "")
    core = Core(tmp_path)
    core.stage(write_extract(tmp_path, FULL, {}, members={f"{table.name}.csv": text}))
    with core.staged(FULL) as (connection, _):
        assert staged_rows(connection, table, "insert") == rows


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_file_that_many_threads_read_keeps_its_order(line_end: str, tmp_path: Path) -> None:
    """DuckDB reads in pieces of 8 MB a thread; here they are more, with breaks inside values."""
    rows: list[Row] = [
        (number_of(CONTACT.columns[0], n * 7919 % 100_003), "ENT", "WEB", f"{n}\n{'x' * (n % 400)}")
        for n in range(100_003)
    ]
    text = with_line_ends(CONTACT, rows, line_end)
    assert len(text) > 2 * 8_000_000
    core = Core(tmp_path, threads=4)
    core.stage(write_extract(tmp_path, FULL, {}, members={"contact.csv": text}))
    with core.staged(FULL) as (connection, _):
        assert staged_rows(connection, CONTACT, "insert") == rows


def test_staging_twice_gives_the_same(tmp_path: Path) -> None:
    core = Core(tmp_path)
    zip_file = write_extract(tmp_path, FULL, AWKWARD)
    results = []
    for _ in range(2):
        core.stage(zip_file)
        with core.staged(FULL) as (connection, staged):
            rows = {t.name: staged_rows(connection, t, "insert") for t in ALL_TABLES}
            results.append((staged, rows))
    assert results[0] == results[1]


@pytest.mark.parametrize("memory_for", [1, 20, 10_000])
@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_rows_are_found_twice_wherever_they_stand(
    at_once: int, memory_for: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many hashes come and are sorted at once: rows side by side, and far apart."""
    rows: list[Row] = [(f"0200.{n // 1000:03}.{n % 1000:03}", "TEL", "TEL", "1") for n in range(60)]
    again = [rows[59], rows[0], rows[1], rows[30], rows[30]]
    keys = [sound_row(ENTERPRISE, number) for number in range(60)]
    content = {"contact": [*rows, *again], "enterprise": [*keys, keys[7], keys[59]]}
    zip_file = write_extract(tmp_path, FULL, content)
    monkeypatch.setattr(staging, "_ROWS_FETCHED", at_once)
    monkeypatch.setattr(staging, "_HASH_BYTES", 128 * 2**20 // memory_for)
    core = Core(tmp_path)
    core.stage(zip_file)
    with core.staged(FULL) as (connection, _):
        found = connection.execute("FROM staging.superseded ORDER BY ALL").fetchall()
    contact = [("contact", row) for row in range(60, 65)]
    assert found == [*contact, ("enterprise", 7), ("enterprise", 59)]


def test_what_the_file_says_of_itself_is_what_staging_said(tmp_path: Path) -> None:
    core = Core(tmp_path)
    deletes = {"branch": ["9.000.006.626"] * 3}
    said = core.stage(write_extract(tmp_path, UPDATE, AWKWARD, deletes))
    with core.staged(UPDATE) as (_, staged):
        assert staged == said
    assert said.table_records(BRANCH) == 3 + len(AWKWARD["branch"])
    assert said.batch_keys == [f"0141-update-{n:04d}" for n in range(1, len(said.batches) + 1)]


@pytest.mark.parametrize("name", ["it's a*[b];", 'a\\b "q" %20', "#$x{y},é😀"])
def test_any_name_of_the_data_directory_will_do(name: str, tmp_path: Path) -> None:
    directory = tmp_path / name
    directory.mkdir()
    core = Core(directory)
    core.import_zip(write_extract(directory, FULL, {"branch": [sound_row(BRANCH)]}))
    with core.read() as reader:
        assert reader.execute('SELECT id FROM "current".branch').fetchall() == [
            (sound_row(BRANCH)[0],)
        ]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in directory.iterdir() if path.suffix != ".zip"} == {
        "kbo.duckdb",
        "staging",
        "work",
    }


def within(batch: Batch, number: str) -> bool:
    """Tells whether an entity number is in the range of a batch, in the order of its UTF-8."""
    return (batch.first_number is None or batch.first_number <= number) and (
        batch.next_number is None or number < batch.next_number
    )


def check_cut(core: Core, staged: Staged, key: ExtractKey, entities: Counter[str]) -> None:
    """Compares the cut of an extract with what it promises; `entities` counts all its rows."""
    batches, total = staged.batches, entities.total()
    assert [batch.number for batch in batches] == list(range(1, len(batches) + 1))
    assert batches[0].first_number is None
    assert batches[-1].next_number is None
    for batch, after in itertools.pairwise(batches):
        assert batch.next_number is not None
        assert batch.next_number == after.first_number
        assert batch.first_number is None or batch.first_number < batch.next_number
    rows = {b.number: sum(c for e, c in entities.items() if within(b, e)) for b in batches}
    assert sum(rows.values()) == total
    assert min(rows.values()) >= min(total, core.batch_rows)
    assert len(batches) <= core.max_batches
    counted: Counter[tuple[str, int, str]] = Counter()
    with core.staged(key) as (connection, _):
        for table in TABLES:
            staged_numbers = connection.execute(
                f"SELECT {table.key}, batch_number, operation"
                f" FROM staging.import_staging_{table.name}"
            ).fetchall()
            for number, batch_number, operation in staged_numbers:
                assert within(batches[batch_number - 1], number)
                counted[table.name, batch_number, operation] += 1
    assert counted == staged.records
    assert counted.total() == total


NUMBERS = [f"{kind}.000.{n:03d}" for kind in ("0200", "1000", "2.000", "9.000") for n in range(5)]


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    numbers=st.lists(st.sampled_from(NUMBERS), max_size=60),
    batch_rows=st.integers(1, 12),
    max_batches=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
@example(numbers=[], batch_rows=1, max_batches=1, seed=0)
@example(numbers=[NUMBERS[0]] * 50, batch_rows=1, max_batches=9, seed=0)
@example(numbers=NUMBERS, batch_rows=1, max_batches=9999, seed=0)
def test_any_extract_is_cut_into_whole_entities(
    numbers: list[str], batch_rows: int, max_batches: int, seed: int
) -> None:
    chance = random.Random(seed)
    inserts: dict[str, list[Row]] = {table.name: [] for table in TABLES}
    deletes: dict[str, list[str]] = {table.name: [] for table in TABLES}
    for number in numbers:
        table = chance.choice([t for t in TABLES if number[0] in t.columns[0].number])
        if chance.random() < 0.3:
            deletes[table.name].append(number)
        else:
            inserts[table.name].append((number, *sound_row(table)[1:]))
    with tempfile.TemporaryDirectory() as name:
        core = Core(Path(name), batch_rows=batch_rows, max_batches=max_batches)
        staged = core.stage(write_extract(Path(name), UPDATE, inserts, deletes))
        check_cut(core, staged, UPDATE, Counter(numbers))


def test_large_batches_are_of_like_size_though_only_some_of_their_rows_are_looked_at(
    tmp_path: Path,
) -> None:
    core = Core(tmp_path, batch_rows=1000, max_batches=3)
    chance = random.Random(1)
    counts = {f"0200.{n // 1000:03d}.{n % 1000:03d}": chance.randint(1, 5) for n in range(12_000)}
    numbers = [number for number, count in counts.items() for _ in range(count)]
    named = [(number, *sound_row(DENOMINATION)[1:]) for number in numbers]
    staged = core.stage(write_extract(tmp_path, UPDATE, {DENOMINATION.name: named}))
    check_cut(core, staged, UPDATE, Counter(numbers))
    rows = [staged.records[DENOMINATION.name, batch.number, "insert"] for batch in staged.batches]
    assert len(rows) == 3
    assert max(rows) < 1.02 * min(rows)


def test_an_empty_update_is_one_batch(tmp_path: Path) -> None:
    staged = Core(tmp_path).stage(write_extract(tmp_path, UPDATE, {}))
    assert staged.batches == (Batch(1, None, None),)
    assert staged.records == {}


def faults(core: Core, zip_file: Path, key: ExtractKey) -> tuple[Fault, ...]:
    """What is wrong with an extract that cannot be staged, and leaves nothing."""
    with pytest.raises(RejectedError) as caught:
        core.stage(zip_file)
    assert [path.name for path in core.staging_dir.iterdir()] == [f"{key}.lock"]
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{zip_file.name}: {caught.value.faults[0]}")
    return caught.value.faults


@pytest.mark.parametrize("unsound", UNSOUND)
def test_an_unsound_record_is_refused_with_its_place_and_leaves_nothing(
    unsound: str, tmp_path: Path
) -> None:
    spoil, reason = UNSOUND[unsound]
    text = spoilt(ADDRESS, spoil)
    zip_file = write_extract(tmp_path, FULL, {}, members={"address.csv": text})
    found, *rest = faults(Core(tmp_path), zip_file, FULL)
    assert (found.file, found.line, rest) == ("address.csv", 3, [])
    assert reason in found.reason
    assert found.byte is not None
    assert text[: found.byte].count(b"\n") == 2


@pytest.mark.parametrize("table", ALL_TABLES, ids=lambda table: table.name)
def test_in_each_table_a_missing_field_and_a_missing_key_are_refused(
    table: Table, tmp_path: Path
) -> None:
    header = csv_text(table.columns, [])
    sound = good_line(table)
    text = f"{header}{sound}\n{sound.rsplit(',', 1)[0]}\n{sound[sound.index(',') :]}\n"
    zip_file = write_extract(tmp_path, FULL, {}, members={f"{table.name}.csv": text})
    found = faults(Core(tmp_path), zip_file, FULL)
    assert [(fault.line, fault.column) for fault in found] == [
        (3, ""),
        (4, table.columns[0].csv_name),
    ]


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize(
    ("table", "text"),
    [
        *((t, "31-02-2020") for t in (ENTERPRISE, ESTABLISHMENT, ADDRESS)),
        *((BRANCH, text) for text in BAD_DATES),
    ],
    ids=lambda value: value.name if isinstance(value, Table) else value,
)
def test_a_bad_date_is_refused_with_its_place(
    table: Table, text: str, quote: str, tmp_path: Path
) -> None:
    content = spoilt(table, lambda line: line.replace("01-02-2020", f"{quote}{text}{quote}"))
    zip_file = write_extract(tmp_path, FULL, {}, members={f"{table.name}.csv": content})
    (fault,) = faults(Core(tmp_path), zip_file, FULL)
    assert (fault.line, fault.reason) == (3, "no date dd-mm-yyyy")
    assert fault.found == repr(text)
    assert content[fault.byte :].startswith(f"{quote}{text}".encode())


def test_the_first_twenty_faults_are_told_together(tmp_path: Path) -> None:
    good, bad = good_line(BRANCH), good_line(BRANCH).replace("01-02-2020", "never")
    text = csv_text(BRANCH.columns, []) + f"{good}\n{bad}\n" * 15
    members: dict[str, str | bytes | None] = {
        "branch.csv": text,
        "contact.csv": None,
        "activity.csv": b"",
        "address.csv": csv_text(ADDRESS.columns, []) + "x\n" * 3,
    }
    zip_file = write_extract(tmp_path, FULL, {}, members=members)
    found = faults(Core(tmp_path), zip_file, FULL)
    assert [(fault.file, fault.line) for fault in found] == [
        ("contact.csv", None),
        ("activity.csv", None),
        *(("address.csv", line) for line in (2, 3, 4)),
        *(("branch.csv", 2 * n + 3) for n in range(15)),
    ]


def test_of_the_two_files_of_an_update_the_unsound_one_is_named(tmp_path: Path) -> None:
    for half, columns in (("delete", BRANCH.columns[:1]), ("insert", BRANCH.columns)):
        text = csv_text(columns, []) + '"9","x","y","z"\n'
        member = f"branch_{half}.csv"
        zip_file = write_extract(tmp_path, UPDATE, {}, members={member: text})
        (fault,) = faults(Core(tmp_path), zip_file, UPDATE)
        assert fault.file == member


def test_a_failed_staging_leaves_the_one_before_as_it_was(tmp_path: Path) -> None:
    core = Core(tmp_path)
    core.stage(write_extract(tmp_path, FULL, AWKWARD))
    before = staging_file(core.staging_dir, FULL).read_bytes()
    bad = {"branch.csv": spoilt(BRANCH, lambda line: "x")}
    with pytest.raises(ExtractError):
        core.stage(write_extract(tmp_path, FULL, {}, members=bad))
    assert staging_file(core.staging_dir, FULL).read_bytes() == before
    assert {path.suffix for path in core.staging_dir.iterdir()} == {".duckdb", ".lock"}


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    core = Core(tmp_path)
    unpacked = core.staging_dir / f"{FULL}.unpacked"
    unpacked.mkdir(parents=True)
    (unpacked / "branch_insert.csv").write_text("half of a")
    (core.staging_dir / f"{FULL}.duckdb.part").write_bytes(b"half of a")
    (core.staging_dir / f"{FULL}.duckdb.part.wal").write_bytes(b"half of a")
    core.stage(write_extract(tmp_path, FULL, AWKWARD))
    names = {path.name for path in core.staging_dir.iterdir()}
    assert names == {f"{FULL}.duckdb", f"{FULL}.lock"}


def test_an_extract_is_staged_by_one_process_at_a_time(tmp_path: Path) -> None:
    core = Core(tmp_path)
    zip_file = write_extract(tmp_path, FULL, {})
    with (
        exclusive_lock(core.staging_dir / f"{FULL}.lock"),
        pytest.raises(StorageError, match=r"process \d+ is at work here"),
    ):
        core.stage(zip_file)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda file, other: None, NotReadyError),
        (lambda file, other: file.write_bytes(other.read_bytes()), RegisterError),
        (lambda file, other: file.write_bytes(b""), RegisterError),
        (lambda file, other: file.write_bytes(b"no database" * 1000), RegisterError),
        (lambda file, other: file.write_bytes(other.read_bytes()[:20_000]), RegisterError),
    ],
    ids=["absent", "of another extract", "empty", "no database", "truncated"],
)
def test_a_staging_file_that_is_not_sound_is_refused(
    make: Callable[[Path, Path], None], error: type[Exception], tmp_path: Path
) -> None:
    core = Core(tmp_path)
    core.stage(write_extract(tmp_path, FULL, {}))
    make(staging_file(core.staging_dir, UPDATE), staging_file(core.staging_dir, FULL))
    with pytest.raises(error, match=str(UPDATE)), core.staged(UPDATE):
        pass


def test_what_is_published_leaves_nothing_of_its_staging(tmp_path: Path) -> None:
    names = ("duckdb", "duckdb.part", "duckdb.part.wal", "lock")
    for key in ("0140-full", "0141-update", "0142-update", "0143-update"):
        (tmp_path / f"{key}.unpacked").mkdir()
        for name in names:
            (tmp_path / f"{key}.{name}").touch()
    (tmp_path / "notes.txt").touch()
    with exclusive_lock(tmp_path / "0141-update.lock"):
        discard_staged(tmp_path, newest=142)
    left = {path.name for path in tmp_path.iterdir()}
    kept = {f"{key}.{n}" for key in ("0141-update", "0143-update") for n in (*names, "unpacked")}
    assert left == kept | {"notes.txt"}


def test_a_connection_that_has_staged_reaches_nothing_but_the_staging_directory(
    tmp_path: Path,
) -> None:
    core = Core(tmp_path / "it's [a] *data* dir é")
    (secret := tmp_path / "secret.csv").write_text("x\n")
    zip_file = write_extract(tmp_path, FULL, AWKWARD)
    with duckdb.connect(":memory:") as connection:
        stage(
            connection,
            core.all_settings(),
            zip_file,
            read_extract(zip_file),
            core.staging_dir,
            max_faulty_rows=0,
        )
        for statement in (
            f"FROM read_csv('{secret}')",
            f"FROM read_text('{secret}')",
            f"COPY (SELECT 1) TO '{tmp_path / 'out.csv'}'",
            f"ATTACH '{tmp_path / 'other.duckdb'}'",
            "FROM read_csv('https://localhost/x.csv')",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET enable_external_access = true",
            "SET memory_limit = '100GB'",
        ):
            with pytest.raises(duckdb.Error, match=r"disabled|locked"):
                connection.execute(statement)
    assert {path.name for path in tmp_path.glob("*.*")} == {secret.name, zip_file.name}
