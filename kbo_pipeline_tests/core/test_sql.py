"""SQL as it is read: all that a whole import, and reading of it, executes on DuckDB."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import pytest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.publish.copy import copy_register, renew_views
from kbo_pipeline.publish.publish import check_published
from kbo_pipeline.publish.verification import verify
from kbo_pipeline.read.export import write_export
from kbo_pipeline.read.register import read_register
from kbo_pipeline.read.report import make_report
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.bakery import BAKER, SHOP, make_bakery
from kbo_pipeline_tests.support.core import Core

_LONGEST = 120

_PATHS = re.compile(r"ATTACH|^TO '|directories =")
"""Lines that hold the path of a file."""


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The statements of import, publication, rollback, verification, and of all ways to read."""
    executed: dict[str, None] = {}
    with pytest.MonkeyPatch.context() as patched:
        for name in ("execute", "executemany", "sql"):
            method = getattr(duckdb.DuckDBPyConnection, name)
            patched.setattr(duckdb.DuckDBPyConnection, name, _recording(method, executed))
        _use_everything(tmp_path_factory.mktemp("sql"))
    yield list(executed)


def _recording(method: Callable[..., Any], executed: dict[str, None]) -> Callable[..., Any]:
    def record(self: duckdb.DuckDBPyConnection, query: str, *values: Any, **named: Any) -> Any:
        executed[query] = None
        return method(self, query, *values, **named)

    return record


def _use_everything(directory: Path) -> None:
    core = make_bakery(directory, Core(directory / "core", privacy="legal-persons"))
    with patch.dict(os.environ, core.settings):
        settings = load_settings()
    key = ExtractKey(142, "update")
    with read_register(core.database) as register:
        register.enterprise(BAKER, language="fr")
        register.enterprise(SHOP, at=140)
        register.find("hemels")
        register.find("b", zipcode="1005", nace="10", status="AC")
        register.find(zipcode="1005")
        register.find(nace="10")
        register.check_known(zipcode="1005", nace="10", nace_version="2025", status="AC")
        register.count_changes(141)
        assert list(register.changes(141))
        assert register.state("address", 140).fetchall()
        assert register.sql('SELECT * FROM "current".enterprise_profile').fetchall()
    with duckdb.connect(":memory:") as connection:
        check_published(
            connection, core.readers, max_loss_percent=100.0, max_loss_percent_full=100.0
        )
    with duckdb.connect(":memory:") as connection:
        make_report(connection, settings, key)
    with duckdb.connect(":memory:") as connection:
        copy = DuckDBFile(directory / "copy.duckdb")
        copy_register(connection, core.readers, copy, privacy="full")
    write_export(settings, directory / "export")
    assert verify(settings, next(directory.glob("*Full*.zip"))).is_equal
    other = Sample(enterprises=50).write_full(directory / "other", key.number)
    assert not verify(settings, other).is_equal
    assert renew_views(core.database, "full")
    core.rollback(key)


def test_a_line_of_sql_is_short_enough_to_read(statements: list[str]) -> None:
    long = sorted(
        f"{len(line)}: {line.strip()}"
        for statement in statements
        for line in statement.split("\n")
        if len(line) > _LONGEST and not _PATHS.search(line)
    )
    assert "\n".join(long) == ""


def test_every_table_is_staged_applied_and_read(statements: list[str]) -> None:
    """The statements above are those of each module, not of some."""
    every = "\n".join(statements)
    for part in (
        "CREATE OR REPLACE TABLE enterprise AS",  # stage/sql.py
        "to_close_enterprise",  # apply/sql.py
        "legal_person_number",  # read/state_sql.py
        "enterprise_profile_at",  # read/views.py
        "come_or_gone",  # read/changes_sql.py
        "starts_with(plain",  # read/queries.py
        "report_changes",  # read/report.py
        "WITH offences AS",  # publish/checks_sql.py
        "TEMP TABLE drift",  # publish/verification.py
        "INSERT INTO import_jobs BY NAME",  # publish/copy.py
        "schema_version",  # core/schema.py
        "FORMAT parquet",  # read/export.py
    ):
        assert part in every, part
