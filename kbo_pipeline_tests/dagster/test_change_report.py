"""The change report: right for any published extract, small, whole or absent, in nobody's way."""

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from kbo_pipeline.core.errors import NotFoundError, NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.operate.repair.alerts import due_alerts
from kbo_pipeline.read.changes import iterate_changes
from kbo_pipeline.read.comparison import (
    MOST,
    ChangeReport,
    Counts,
    Standout,
    find_anomalies,
)
from kbo_pipeline.read.report import (
    EXAMPLES,
    Bars,
    draw,
    escaped,
    make_report,
    remove_report,
    report_directory,
)
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.pipeline import Pipeline, materializations

FULL = ExtractKey(140, "full")
LAST = 149
SAMPLE = Sample(enterprises=150, seed=4)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A register with a Full and a dozen Updates."""
    core = Core(tmp_path_factory.mktemp("data"), batch_rows=100_000)
    zips = tmp_path_factory.mktemp("zips")
    core.import_zip(SAMPLE.write_full(zips, FULL.number))
    for number in range(FULL.number + 1, LAST + 1):
        core.import_zip(SAMPLE.write_update(zips, number))
    return core


@pytest.fixture
def settings(core: Core, tmp_path: Path) -> Iterator[Settings]:
    """Settings with the published file of the core, and reports of their own."""
    environment = {"KBO_DATA_DIR": str(tmp_path), "KBO_DATABASE": str(core.database)}
    yield load_settings(environment, tmp_path)


def update(number: int) -> ExtractKey:
    return ExtractKey(number, "update")


def report_on(settings: Settings, key: ExtractKey) -> ChangeReport:
    with duckdb.connect(":memory:") as connection:
        return make_report(connection, settings, key)


def listed(settings: Settings, key: ExtractKey) -> list[tuple[object, ...]]:
    file = report_directory(settings, key) / "changes.parquet"
    with duckdb.connect(":memory:") as connection:
        return connection.execute("FROM read_parquet($file)", {"file": str(file)}).fetchall()


def files_in(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_a_report_lists_exactly_the_changes_of_its_extract(core: Core, settings: Settings) -> None:
    for number in (141, 145, LAST):
        key = update(number)
        report = report_on(settings, key)
        with core.read() as reader:
            changes = list(iterate_changes(reader, number))
        assert [tuple(getattr(c, name) for name in c.__slots__) for c in changes] == [
            (row[0], row[1], *row[2:]) for row in listed(settings, key)
        ]
        assert report.changes == len(changes)
        assert report.entities == len({change.entity_number for change in changes})
        for name, count in report.kinds.items():
            of_kind = [c for c in changes if (c.table, c.kind) == name]
            assert count == len(of_kind)
            shown = [c for c in report.examples if (c.table, c.kind) == name]
            assert shown == of_kind[:EXAMPLES]


def test_a_report_made_later_is_the_same(tmp_path: Path) -> None:
    core = Core(tmp_path / "data", batch_rows=100_000)
    settings = load_settings({"KBO_DATA_DIR": str(core.directory)}, tmp_path)
    core.import_zip(SAMPLE.write_full(tmp_path, 140))
    for number in (141, 142, 143):
        core.import_zip(SAMPLE.write_update(tmp_path, number))
        report_on(settings, update(number))
    directory = report_directory(settings, update(142))
    before = files_in(directory)
    core.import_zip(SAMPLE.write_update(tmp_path, 144))
    remove_report(settings, update(142))
    assert not directory.exists()
    report_on(settings, update(142))
    assert files_in(directory) == before
    assert directory.stat().st_mode & 0o077 == 0


def test_numbers_are_compared_with_the_extracts_before_but_not_with_the_first(
    core: Core, settings: Settings
) -> None:
    for number in range(141, LAST):
        report_on(settings, update(number))
    report = report_on(settings, update(LAST))
    assert [day.key.number for day in report.before] == list(range(141, LAST))
    assert len(report.past_kinds) == len(report.before)
    assert len(report.unusual) <= MOST
    with core.read() as reader:
        (rows,) = reader.execute(
            "SELECT sum(rows_closed + rows_opened) FROM import_job_batches WHERE job_id = $id",
            {"id": str(update(LAST))},
        ).fetchall()
    assert report.day.total == rows[0]


def test_the_first_extract_is_told_of_but_not_listed(settings: Settings) -> None:
    report = report_on(settings, FULL)
    assert report.is_first
    assert report.changes == 0
    (page,) = files_in(report_directory(settings, FULL)).items()
    assert page[0] == "report.md"
    assert b"all of it is new" in page[1]


def test_what_is_not_published_has_no_report(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="0999-update: not among the published extracts"):
        report_on(settings, update(999))
    assert not settings.reports_dir.exists()
    nothing = load_settings({"KBO_DATA_DIR": str(tmp_path / "none")}, tmp_path)
    with pytest.raises(NotReadyError, match="nothing is published yet"):
        report_on(nothing, FULL)


def test_pages_and_plots_are_small(settings: Settings) -> None:
    for number in (141, LAST):
        report_on(settings, update(number))
        sizes = {n: len(f) for n, f in files_in(report_directory(settings, update(number))).items()}
        assert sizes.keys() == {"report.md", "plot.png", "changes.parquet"}
        assert 1000 < sizes["plot.png"] < 30_000
        assert sizes["report.md"] < 20_000


def test_a_plot_calls_nothing_usual_while_fewer_than_8_are_known(tmp_path: Path) -> None:
    def bars(*totals: int) -> Bars:
        labels = [f"{number:04d}" for number in range(len(totals))]
        return Bars("a title", labels, totals, {"activity": totals})

    few, enough = bars(*range(10, 17), 500), bars(*range(10, 18), 500)
    assert (bars(5).usual, few.usual, enough.usual) == (None, None, 13.5)
    for drawn in (few, enough):
        assert draw(drawn, tmp_path).startswith(b"\x89PNG")


def test_names_do_not_spoil_the_page() -> None:
    assert escaped("A | B\n`<i>`") == r"A \| B \`\<i\>\`"
    assert len(escaped("x" * 200)) == 60


PAST: list[Counts] = [
    {("activity", "opened"): 400 + day, ("branch", "new"): 0} for day in range(20)
]
QUIET: Counts = {("activity", "opened"): 410, ("branch", "new"): 0}


def test_a_number_far_from_the_median_is_unusual_and_a_new_kind_too() -> None:
    rows = {("activity", "opened"): 7_279_279, ("branch", "new"): 0}
    kinds = {("activity", "opened"): 410, ("branch", "new"): 1}
    first, second = find_anomalies(rows, PAST, kinds, PAST, [], [])
    assert first.subject == "activity opened"
    assert first.text.startswith("7,279,279 rows; usual is 410, the median of the 20 extracts")
    assert (second.subject, second.text) == (
        "branch new",
        "1 entity; none in the 20 extracts before",
    )


def test_without_enough_extracts_before_no_number_is_unusual() -> None:
    rows = {("activity", "opened"): 7_279_279}
    assert find_anomalies(rows, PAST[:7], {("branch", "new"): 1}, PAST[:7], [], []) == []


def test_enterprises_come_by_turns_each_once_ten_things_at_most() -> None:
    kinds = [Standout(f"0{n}", "A", 5, 1, "x") for n in range(8)]
    entities = [Standout(f"0{n}", "B", 1, 1000, "y") for n in (0, *range(20, 27))]
    found = find_anomalies(QUIET, PAST, QUIET, PAST, kinds, entities)
    assert len(found) == MOST
    numbers = [one.subject.split()[0] for one in found]
    assert numbers[:4] == ["00", "01", "020", "02"]
    assert len(set(numbers)) == MOST
    assert found[2].text == "1,000 of its entities changed: y"


@pytest.mark.rare
@pytest.mark.long
def test_a_report_that_fails_neither_hides_the_extract_nor_stops_the_next(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    sample = Sample(enterprises=60, seed=3)
    zips = tmp_path / "zips"
    zips.mkdir()
    full, first = sample.write_full(zips, 140), sample.write_update(zips, 141)
    reports = pipeline.directory / "reports"
    reports.write_text("no directory")
    done = pipeline.kbo_process("import", full, first)
    assert done.stdout.count(": published in ") == 2
    told = done.stderr.splitlines()
    assert len(told) == 2
    assert told[1].startswith("published, but the change report failed: 0141-update: ")
    assert told[1].endswith("; fix it, then kbo retry 0141-update")

    status = json.loads(pipeline.kbo("status", "0141-update", "--json").stdout)
    assert (status["status"], status["error"]) == ("completed", None)
    with pipeline.instance() as instance:
        settings = load_settings(pipeline.environment, tmp_path)
        assert due_alerts(instance, settings, 0.0) == []
        assert materializations(instance, "change_report") == {}
    found = json.loads(pipeline.kbo("doctor", "--json", check=False).stdout)["data"]
    (finding,) = [f for f in found if f["subject"] == "0141-update"]
    assert finding["severity"] == "warning"
    assert finding["text"].startswith("change_report failed: ")

    failed = pipeline.kbo("retry", "0141-update", check=False)
    assert failed.returncode == 1
    reports.unlink()
    for extract in ("0141-update", "0140-full"):
        assert pipeline.kbo("retry", extract).stdout == f"{extract}: change report\n"
        again = pipeline.kbo("retry", extract)
        assert again.stdout == f"{extract}: published: nothing to retry\n"
        assert (reports / extract / "report.md").is_file()
    with pipeline.instance() as instance:
        assert materializations(instance, "change_report") == {"0141-update": 1, "0140-full": 1}
        assert materializations(instance, "published_extract") == {"0141-update": 1, "0140-full": 1}
        success = dg.DagsterRunStatus.SUCCESS
        runs = instance.get_runs(dg.RunsFilter(job_name="publish_extract"))
        assert [run.status == success for run in runs] == [True, True, False, False, False]

    pipeline.kbo("rollback", "0141-update")
    assert [directory.name for directory in reports.iterdir()] == ["0140-full"]
    with pipeline.instance() as instance:
        assert materializations(instance, "change_report") == {"0140-full": 1}
