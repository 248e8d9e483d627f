"""The profiles that readers have in a table are of the extract that they see, whatever happens."""

from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import Privacy
from kbo_pipeline.publish import copy, publish
from kbo_pipeline.publish.copy import has_profiles, has_views, renew_views, show_to_readers
from kbo_pipeline.read.profile_sql import PROFILES
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.profiles import (
    check_profiles,
    small_registers_keep_them,  # noqa: F401
)
from kbo_pipeline_tests.support.zips import Row, rows_for, write_extract

FULL, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")
SELLER, BUYER, UNIT = "0200.000.001", "0200.000.002", "2.000.000.339"


@pytest.mark.parametrize("privacy", ["full", "legal-persons"])
def test_they_follow_fulls_updates_and_rollbacks(tmp_path: Path, privacy: Privacy) -> None:
    core = Core(tmp_path, batch_rows=500, privacy=privacy)
    sample = Sample(enterprises=80, seed=1, change_shares=(0.3, 0.2, 0.3))
    zips = [sample.write_full(tmp_path, 140)]
    zips += [sample.write_update(tmp_path, number) for number in (141, 142)]
    zips += [sample.write_full(tmp_path, 143)]
    for zip_file in zips:
        core.import_zip(zip_file)
        check_profiles(core)
    core.rollback(ExtractKey(143, "full"))
    check_profiles(core)
    core.rollback(ExtractKey(142, "update"))
    check_profiles(core)
    core.import_zip(zips[2])
    check_profiles(core)


def test_a_small_register_chooses_each_time_until_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Core(tmp_path)
    sample = Sample(enterprises=60, seed=2, change_shares=(0.3, 0.3))
    monkeypatch.setattr(copy, "MANY_ENTERPRISES", 1000)
    core.import_zip(sample.write_full(tmp_path, 140))
    check_profiles(core, kept=False)
    monkeypatch.setattr(copy, "MANY_ENTERPRISES", 50)
    core.import_zip(sample.write_update(tmp_path, 141))
    check_profiles(core)


def rows(seller: str = "2", owner: str = SELLER) -> dict[str, list[Row]]:
    """Two enterprises and a unit; the kind of one of them, and whose the unit is."""
    made = rows_for([SELLER, BUYER], "some")
    made["enterprise"] = [
        (number, "AC", "000", kind, None, None, None)
        for number, kind in ((SELLER, seller), (BUYER, "2"))
    ]
    codes: list[Row] = [("Status", "AC", "NL", "Actief")]
    return {**made, "establishment": [(UNIT, None, owner)], "code": codes}


@pytest.mark.parametrize(("privacy", "left"), [("full", 1), ("legal-persons", 0)])
def test_units_of_others_are_counted_again_when_their_former_owner_is_hidden(
    tmp_path: Path, privacy: Privacy, left: int
) -> None:
    core = Core(tmp_path, privacy=privacy)
    core.import_zip(write_extract(tmp_path, FULL, rows()))
    moved: dict[str, list[Row]] = {"code": rows()["code"], "establishment": [(UNIT, None, BUYER)]}
    core.import_zip(write_extract(tmp_path, UPDATE, moved))
    assert units(core) == 1
    check_profiles(core)
    hidden = {"code": rows()["code"], "enterprise": rows(seller="1")["enterprise"][:1]}
    core.import_zip(write_extract(tmp_path, ExtractKey(142, "update"), hidden))
    assert units(core) == left
    check_profiles(core)


def units(core: Core) -> int:
    with core.read() as reader:
        ((count,),) = reader.execute(
            'SELECT establishments FROM "current".enterprise_profile WHERE enterprise_number = $n',
            {"n": BUYER},
        ).fetchall()
    return int(count)


def test_a_repair_makes_them_anew(tmp_path: Path) -> None:
    core = Core(tmp_path)
    sample = Sample(enterprises=50, seed=3)
    core.import_zip(sample.write_full(tmp_path, 140))
    core.import_zip(sample.write_update(tmp_path, 141))
    right = sample.write_full(tmp_path / "right", 141)
    with duckdb.connect(":memory:") as connection:
        name = core.register.attach_to_write(connection, "register")
        connection.execute(f"USE {name}.{core.register.schema_at_work}")
        connection.execute("UPDATE denomination SET denomination = 'by hand' WHERE _is_current")
    core.repair(right)
    check_profiles(core)
    with core.read() as reader:
        found = reader.execute("FROM current.enterprise WHERE primary_name = 'by hand'").fetchall()
    assert not found


class Killed(BaseException):
    """The process ended there."""


@pytest.mark.file_only("a lake has none")
def test_readers_have_right_answers_before_they_are_made_and_where_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Core(tmp_path, batch_rows=500)
    sample = Sample(enterprises=50, seed=5, change_shares=(0.4, 0.4))
    core.import_zip(sample.write_full(tmp_path, 140))
    monkeypatch.setattr(publish, "CHANGED_AT_MOST", 0)
    for killed in ("keep_profiles", "show_to_readers"):
        number = 141 if killed == "keep_profiles" else 142
        with monkeypatch.context() as patch:

            def die(*_: object) -> None:
                check_profiles(core, kept=False)
                raise Killed

            shown = show_to_readers
            calls = [shown, die] if killed == "show_to_readers" else [die]
            patch.setattr(publish, killed, lambda *a, calls=calls: calls.pop(0)(*a))
            with pytest.raises(Killed):
                core.import_zip(sample.write_update(tmp_path, number))
        check_profiles(core, kept=False)
        core.publish(ExtractKey(number, "update"))
        check_profiles(core)


@pytest.mark.file_only("a lake has none")
def test_other_views_than_ours_of_today_drop_them(tmp_path: Path) -> None:
    core = Core(tmp_path, batch_rows=500)
    sample = Sample(enterprises=50, seed=6, change_shares=(0.4,))
    core.import_zip(sample.write_full(tmp_path, 140))
    for file in (core.database, core.register_file):  # as a version without profiles leaves it
        with duckdb.connect(str(file)) as connection:
            connection.execute("COMMENT ON VIEW \"current\".source IS 'another version'")
            connection.execute(f"UPDATE {PROFILES} SET primary_name = 'of long ago'")
    assert renew_views(core.database, "full")
    check_profiles(core, kept=False)
    with core.read() as reader:
        names = reader.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    assert (PROFILES,) not in names
    core.import_zip(sample.write_update(tmp_path, 141))
    check_profiles(core)
    core.privacy = "legal-persons"
    assert not has_views(core.database, core.privacy)
    assert renew_views(core.database, core.privacy)
    assert not has_profiles(core.database, core.privacy)
    check_profiles(core, kept=False)
    core.import_zip(sample.write_update(tmp_path, 142))
    check_profiles(core)
