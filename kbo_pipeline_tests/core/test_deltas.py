"""Deltas: base + delta = target, by `kbo apply-delta` and by SQL, whatever is wrong with either."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from kbo_pipeline.cli import main
from kbo_pipeline.core.errors import ExportError, ExtractError, NotFoundError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.core.tables import ALL_TABLES, Privacy
from kbo_pipeline.read.apply_delta import apply_delta
from kbo_pipeline.read.content import hash_of, read_content
from kbo_pipeline.read.export import write_delta, write_export, write_export_and_deltas
from kbo_pipeline.read.manifest import DELTA_FORMAT, MANIFEST, read_export
from kbo_pipeline.read.published import hash_of_state
from kbo_pipeline.read.views import PROFILE
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.lakes import ASKED_FOR
from kbo_pipeline_tests.support.processes import wait_until
from kbo_pipeline_tests.support.zips import Row, write_extract

BEGAN = date(2001, 2, 3)
FIRM, TURNED, UNKNOWN, LATER = "0200.065.765", "0200.068.636", "0403.449.823", "0403.449.922"
SHOP, THEIRS, OF_UNKNOWN = "2.000.000.339", "2.000.000.438", "2.000.000.537"
NEWEST = 145


def enterprise(number: str, kind: str = "2", form: str = "014") -> Row:
    return (number, "AC", "000", kind, form, None, BEGAN)


def contact(number: str, value: str) -> Row:
    return (number, "ENT", "TEL", value)


def name(number: str, text: str) -> Row:
    return (number, "2", "003" if number[0] == "2" else "001", text)


CODES: list[Row] = [("Status", "AC", "NL", "Actief"), ("Status", "AC", "FR", "Actif")]
AT_FIRST: dict[str, list[Row]] = {
    "enterprise": [enterprise(FIRM), enterprise(TURNED)],
    "establishment": [(SHOP, BEGAN, FIRM), (THEIRS, BEGAN, TURNED), (OF_UNKNOWN, BEGAN, UNKNOWN)],
    "branch": [("9.000.006.626", BEGAN, FIRM)],
    "denomination": [
        *(name(FIRM, "Bakkerij"), name(TURNED, "Iemand"), name(SHOP, "Winkel")),
        *(name(THEIRS, "Kraam"), name(OF_UNKNOWN, "Zaak")),
    ],
    "address": [(SHOP, "BAET", None, None, "1000", "A", "A", "S", "R", "2", *[None] * 3)],
    "contact": [contact(FIRM, "1"), contact(SHOP, "1"), contact(OF_UNKNOWN, "1")],
    "activity": [(FIRM, "001", "2025", "10710", "MAIN"), (THEIRS, "001", "2025", "47240", "MAIN")],
    "code": CODES,
}
"""TURNED is a legal person for a day; UNKNOWN, who has a unit, is one from the second Update on."""

DAYS: dict[int, tuple[dict[str, list[Row]], dict[str, list[str]]]] = {
    141: (
        {
            "enterprise": [enterprise(TURNED, "1")],
            "contact": [contact(FIRM, "of a day"), contact(SHOP, "2")],
            "denomination": [name(FIRM, "Bakkerij Nieuw")],
            "code": [*CODES, ("Status", "ST", "NL", "Gestopt")],
        },
        {"enterprise": [TURNED], "contact": [FIRM, SHOP], "denomination": [FIRM]},
    ),
    142: (
        {
            "enterprise": [enterprise(UNKNOWN), enterprise(LATER)],
            "contact": [contact(FIRM, "1")],
            "activity": [(LATER, "001", "2025", "10710", "MAIN")],
            "code": [*CODES, ("Status", "ST", "NL", "Gestopt")],
        },
        {"contact": [FIRM], "address": [SHOP]},
    ),
}


def full_after_a_gap() -> dict[str, list[Row]]:
    rows = {
        table: [row for row in rows if row[0] not in (LATER, "9.000.006.626")]
        for table, rows in AT_FIRST.items()
    }
    return rows | {
        "enterprise": [enterprise(FIRM, form="610"), enterprise(TURNED, "1"), enterprise(UNKNOWN)],
        "branch": [("9.000.006.725", BEGAN, FIRM)],
        "contact": [*AT_FIRST["contact"], contact(SHOP, "3")],
    }


@dataclass
class Chain:
    """A Full, two Updates, and a Full that bridges a gap; and the export of each state."""

    core: Core
    zips: Path
    exports: Path

    def settings(self, privacy: Privacy = "full") -> Settings:
        return settings_of(self.core, privacy)

    def export(self, number: int, privacy: Privacy = "full") -> Path:
        return self.exports / privacy / str(number)


def settings_of(core: Core, privacy: Privacy = "full") -> Settings:
    return load_settings({**core.settings, "KBO_PRIVACY": privacy}, core.directory)


def extract(directory: Path, number: int) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    if number in DAYS:
        return write_extract(directory, ExtractKey(number, "update"), *DAYS[number])
    rows = AT_FIRST if number == 140 else full_after_a_gap()
    return write_extract(directory, ExtractKey(number, "full"), rows)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    directory = tmp_path_factory.mktemp("deltas")
    core = Core(directory / "data", batch_rows=1000)
    chain = Chain(core, directory / "zips", directory / "exports")
    for number in (140, *DAYS, NEWEST):
        core.import_zip(extract(chain.zips, number))
        for privacy in PRIVACIES:
            write_export(chain.settings(privacy), chain.export(number, privacy))
    write_delta(chain.settings(), chain.exports / "delta", "140")
    return chain


PRIVACIES: tuple[Privacy, ...] = ("full", "legal-persons")


@pytest.fixture
def base(chain: Chain, tmp_path: Path) -> Path:
    """A copy of the first export."""
    return shutil.copytree(chain.export(140), tmp_path / "base")


@pytest.fixture
def delta(chain: Chain, tmp_path: Path) -> Path:
    """A copy of the delta from there to the newest state."""
    return shutil.copytree(chain.exports / "delta", tmp_path / "delta")


def manifest(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
    return found


def rewrite(directory: Path, change: Callable[[Any], object]) -> None:
    content = manifest(directory)
    change(content)
    (directory / MANIFEST).write_text(json.dumps(content))


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def rows(directory: Path, table: str) -> list[Row]:
    return duckdb.execute(f"FROM '{directory / table}.parquet'").fetchall()


def same_export(one: Path, other: Path) -> None:
    """What is in them, and what their manifests say of it, is the same."""
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for table in (*(table.name for table in ALL_TABLES), PROFILE):
        assert rows(one, table) == rows(other, table), table
    said, expected = manifest(one), manifest(other)
    for content in (said, expected):
        for file in content["tables"].values():
            del file["bytes"], file["sha256"]
        if ASKED_FOR:  # what stands for a copy of a lake is imported anew
            del content["published_at"]
    assert said == expected


def hash_of_files(directory: Path) -> str:
    """The content hash of an export, counted from its files."""
    with duckdb.connect() as connection:
        return hash_of(
            {
                table.name: read_content(
                    connection, table, f"FROM '{directory / table.name}.parquet'"
                )
                for table in ALL_TABLES
            }
        )


@pytest.mark.parametrize("since", [140, 141, 142, NEWEST])
@pytest.mark.parametrize("privacy", PRIVACIES)
def test_base_and_delta_are_the_target(
    chain: Chain, tmp_path: Path, privacy: Privacy, since: int
) -> None:
    base = shutil.copytree(chain.export(since, privacy), tmp_path / "base")
    done = write_delta(chain.settings(privacy), tmp_path / "delta", str(since))
    said = manifest(tmp_path / "delta")
    assert said["format"] == DELTA_FORMAT
    assert said["from"]["content_hash"] == hash_of_files(base)
    assert said["to"]["content_hash"] == hash_of_files(chain.export(NEWEST, privacy))
    for table in ALL_TABLES:
        found = rows(tmp_path / "delta", table.name)
        changed = [row for _, *row in found]
        assert changed == sorted(changed, key=lambda row: [(v is None, v) for v in row])
        before, after = (
            {row[: len(table.columns)] for row in rows(chain.export(number, privacy), table.name)}
            for number in (since, NEWEST)
        )
        assert {("added", *row) for row in after - before} | {
            ("removed", *row) for row in before - after
        } == {*found}
        assert len(found) == len({*found})
        file = done.tables[table.name]
        assert (file.added, file.removed) == (len(after - before), len(before - after))
    assert (done.added + done.removed > 0) == (since != NEWEST)
    export, _ = apply_delta(load_settings({}, tmp_path / "elsewhere"), base, tmp_path / "delta")
    assert export.state.content_hash == said["to"]["content_hash"]
    same_export(base, chain.export(NEWEST, privacy))


def test_who_comes_into_view_or_leaves_it_does_so_with_all_rows(
    chain: Chain, tmp_path: Path
) -> None:
    write_delta(chain.settings("legal-persons"), tmp_path / "delta", "140")
    found = [
        (change, row[0])
        for table in ("enterprise", "establishment", "denomination", "contact", "activity")
        for change, *row in rows(tmp_path / "delta", table)
    ]
    for number in (TURNED, THEIRS):  # its unit's rows are the same all the time
        assert {change for change, one in found if one == number} == {"removed"}
    assert {change for change, one in found if one == OF_UNKNOWN} == {"added"}
    assert [one for _, one in found].count(OF_UNKNOWN) == 3
    whole = [row[1] for row in rows(chain.exports / "delta", "denomination")]
    assert OF_UNKNOWN not in whole and THEIRS not in whole


def test_an_export_and_a_delta_have_the_hash_of_the_register(chain: Chain, tmp_path: Path) -> None:
    done = write_delta(chain.settings(), tmp_path / "delta", "0141-update")
    with chain.core.read() as reader:
        expected = {number: hash_of_state(reader, number) for number in (140, 141, 142, NEWEST)}
    assert (done.base.content_hash, done.target.content_hash) == (expected[141], expected[NEWEST])
    for number, content_hash in expected.items():
        assert read_export(chain.export(number)).state.content_hash == content_hash
        assert manifest(chain.export(number))["content_hash"] == content_hash


def copy_of(chain: Chain, directory: Path) -> Core:
    if chain.core.shared is not None:  # another lake cannot be copied
        core = Core(directory, batch_rows=1000)
        for number in (140, *DAYS, NEWEST):
            core.import_zip(extract(chain.zips, number))
        return core
    shutil.copytree(chain.core.directory, directory)
    return replace(chain.core, directory=directory)


@pytest.mark.parametrize("privacy", PRIVACIES)
def test_what_is_derived_is_what_is_counted_whole(
    chain: Chain, tmp_path: Path, privacy: Privacy
) -> None:
    settings = settings_of(copy_of(chain, tmp_path / "data"), privacy)
    known = settings.work_dir / "content.json"
    if chain.core.shared is not None:
        write_delta(settings, tmp_path / "delta", "140")
    derived = known.read_text()
    told: list[str] = []
    for text in (None, "{", '{"full": 3}', '{"legal-persons": {"extract_number": "x"}}'):
        known.unlink() if text is None else known.write_text(text)
        write_delta(settings, tmp_path / "delta", "140", report=lambda name, *_: told.append(name))
        assert json.loads(known.read_text())[privacy] == json.loads(derived)[privacy]
    assert told.count("hash of activity") == 4
    write_delta(settings, tmp_path / "delta", "140", report=lambda name, *_: told.append(name))
    assert told.count("hash of activity") == 4


def test_after_a_rollback_deltas_lead_to_what_holds(chain: Chain, tmp_path: Path) -> None:
    core = copy_of(chain, tmp_path / "data")
    core.rollback(ExtractKey(NEWEST, "full"))
    settings = settings_of(core)
    with pytest.raises(NotFoundError, match=r"^0145-full: not among the published"):
        write_delta(settings, tmp_path / "delta", "0145-full")
    write_delta(settings, tmp_path / "delta", "140")
    base = shutil.copytree(chain.export(140), tmp_path / "base")
    apply_delta(settings, base, tmp_path / "delta")
    same_export(base, chain.export(142))
    core.rollback(ExtractKey(142, "update"))
    other = write_extract(
        tmp_path, ExtractKey(142, "update"), {"contact": [contact(FIRM, "3")], "code": CODES}
    )
    core.import_zip(other)  # another one of that number
    export, _ = write_export_and_deltas(settings, tmp_path / "whole", tmp_path / "deltas")
    assert export.state.content_hash == hash_of_files(tmp_path / "whole")
    base = shutil.copytree(chain.export(141), tmp_path / "base141")
    apply_delta(settings, base, tmp_path / "deltas" / "0141-update_0142-update")
    same_export(base, tmp_path / "whole")
    with pytest.raises(ExportError, match=r"it is at 0142-update, .* leads from 0141-update"):
        apply_delta(
            settings,
            shutil.copytree(chain.export(142), tmp_path / "base142"),
            tmp_path / "deltas" / "0141-update_0142-update",
        )


@pytest.mark.parametrize(
    ("since", "error", "text"),
    [
        ("139", NotFoundError, r"^139: not among the published extracts"),
        ("0140-update", NotFoundError, "0140-full is$"),
        ("yesterday", ExtractError, "^'yesterday'"),
    ],
)
def test_an_extract_that_is_not_published_is_refused(
    chain: Chain, tmp_path: Path, since: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        write_delta(chain.settings(), tmp_path / "delta", since)
    assert not (tmp_path / "delta").exists()


def test_an_export_is_not_replaced_by_a_delta_nor_a_delta_by_an_export(
    chain: Chain, base: Path, delta: Path
) -> None:
    with pytest.raises(ExportError, match="in it is not of a delta"):
        write_delta(chain.settings(), base, "140")
    with pytest.raises(ExportError, match="in it is not of an export"):
        write_export(chain.settings(), delta)
    write_delta(chain.settings(), delta, "141")
    assert manifest(delta)["from"]["extract"] == "0141-update"


def applied(base: Path, delta: Path, directory: Path) -> str:
    """The line that `kbo apply-delta` fails with."""
    before = files(base)
    result = CliRunner().invoke(
        main, ["apply-delta", str(base), str(delta)], env={"KBO_DATA_DIR": str(directory / "work")}
    )
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert files(base) == before
    assert [path.name for path in base.parent.iterdir() if path.name.startswith(".")] == []
    return line


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (("full", 141), "it is at 0141-update, KBO_PRIVACY=full, content "),
        (("legal-persons", 140), "it is at 0140-full, KBO_PRIVACY=legal-persons, content "),
        (("full", NEWEST), "it is at 0145-full already, where "),
    ],
)
def test_a_wrong_base_is_refused(
    chain: Chain, delta: Path, tmp_path: Path, other: tuple[Privacy, int], text: str
) -> None:
    privacy, number = other
    base = shutil.copytree(chain.export(number, privacy), tmp_path / "other")
    assert f"kbo: {base}: {text}" in applied(base, delta, tmp_path)


def _flip(directory: Path) -> None:
    content = bytearray((directory / "contact.parquet").read_bytes())
    content[len(content) // 2] ^= 8
    (directory / "contact.parquet").write_bytes(content)


def _describe(directory: Path, query: str) -> None:
    """Writes another file of contacts, and lets the manifest describe it."""
    file = directory / "contact.parquet"
    duckdb.execute(f"COPY (\n{query.format(file=file)}\n) TO '{file}.new' (FORMAT parquet)")
    _replace(directory, Path(f"{file}.new").read_bytes())


def _no_parquet(directory: Path) -> None:
    _replace(directory, b"x" * 40)


def _replace(directory: Path, data: bytes) -> None:
    (directory / "contact.parquet").write_bytes(data)
    said = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(directory, lambda content: content["tables"]["contact"].update(said))


def _with(*path: str, value: Any) -> Callable[[Path], None]:
    def change(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    return lambda directory: rewrite(directory, change)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (_flip, "contact.parquet: not the file that manifest.json describes; get "),
    "a file": (lambda d: (d / "code.parquet").unlink(), "code.parquet: No such file"),
    "the manifest": (lambda d: (d / MANIFEST).unlink(), f"{MANIFEST}: No such file"),
    "no JSON": (lambda d: (d / MANIFEST).write_text("{"), "not that of a delta (Expecting"),
    "bytes": (lambda d: (d / MANIFEST).write_bytes(b"\xff\xfe"), "not that of a delta ("),
    "a list": (lambda d: (d / MANIFEST).write_text("[1]"), "not that of a delta ("),
    "deep": (lambda d: (d / MANIFEST).write_text("[" * 200_000), "not that of a delta ("),
    "long": (lambda d: (d / MANIFEST).write_text(" " * 2_000_000), "longer than 1,048,576 bytes"),
    "format": (_with("format", value="kbo_pipeline export 1"), "its format is another"),
    "no from": (_with("from", value=None), "not that of a delta ("),
    "no tables": (_with("tables", value={}), "its tables is another"),
    "rows": (_with("tables", "contact", "rows", value=-1), "its rows is another"),
    "sums": (_with("tables", "contact", "added", value=77), "its contact: rows is another"),
    "truth": (_with("tables", "contact", "rows", value=True), "its rows is another"),
    "hash": (_with("to", "content_hash", value="0" * 64), "content_hash is another"),
    "extract": (_with("to", "extract", value="../../x"), "is not an extract"),
    "privacy": (_with("privacy", value="nobody"), "its privacy is another"),
    "above": (_with("tables", "contact", "file", value="../contact.parquet"), "contact: file is"),
    "root": (_with("tables", "contact", "file", value="/etc/passwd"), "its contact: file is"),
    "emptied": (
        lambda d: _describe(d, "FROM '{file}' WHERE false"),
        "stays as it is: with the delta, contact would not be what 0145-full has",
    ),
    "columns": (
        lambda d: _describe(d, "SELECT _change, 1 AS entity_number FROM '{file}'"),
        "contact.parquet: its columns are not those",
    ),
    "no parquet": (_no_parquet, "cannot be applied to "),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_delta_is_refused_in_a_line_and_the_base_stays(
    base: Path, delta: Path, tmp_path: Path, what: str
) -> None:
    damage, text = DAMAGES[what]
    damage(delta)
    assert text in applied(base, delta, tmp_path)


def test_a_damaged_base_is_refused(base: Path, delta: Path, tmp_path: Path) -> None:
    _flip(base)
    assert "base/contact.parquet: not the file that" in applied(base, delta, tmp_path)
    (base / "notes.txt").touch()
    assert "notes.txt in it is not of an export" in applied(base, delta, tmp_path)
    (base / "notes.txt").unlink()
    rewrite(base, lambda content: content.pop("content_hash"))  # of an earlier version
    assert "it has no 'content_hash'" in applied(base, delta, tmp_path)
    shutil.rmtree(base)
    base.mkdir()
    assert "manifest.json: No such file or directory; name an export" in applied(
        base, delta, tmp_path
    )


SLOW = """
import sys, time
from pathlib import Path
from kbo_pipeline.read.apply_delta import apply_delta
from kbo_pipeline.core.settings import load_settings

def stand_still(name, done, total):
    if done == total - 1:
        Path(sys.argv[3]).touch()
        time.sleep(600)

apply_delta(load_settings(), Path(sys.argv[1]), Path(sys.argv[2]), report=stand_still)
"""


def test_a_kill_leaves_the_base_and_the_next_call_does_it(
    chain: Chain, base: Path, delta: Path, tmp_path: Path
) -> None:
    before = files(base)
    environment = {"KBO_DATA_DIR": str(tmp_path / "work")}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(base), str(delta), str(tmp_path / "reached")],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )
    wait_until((tmp_path / "reached").exists, "the last table")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert files(base) == before
    os.rename(base, tmp_path / ".base.replaced")  # killed between the two renames
    done = CliRunner().invoke(main, ["apply-delta", str(base), str(delta)], env=environment)
    assert done.exit_code == 0, done.output
    first, last = done.stdout.splitlines()
    assert re.fullmatch(rf"{base}: 0140-full -> 0145-full, \d+ rows added, \d+ removed", first)
    assert last.endswith(f"; content {manifest(base)['content_hash']}")
    same_export(base, chain.export(NEWEST))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_command_counts_what_is_in_a_delta(chain: Chain, tmp_path: Path) -> None:
    environment = chain.core.settings
    arguments = ["export", str(tmp_path / "delta"), "--since", "2025-10-04"]
    day = chain.core.read().execute(
        "SELECT snapshot_date FROM import_jobs WHERE extract_number = 141"
    )
    ((snapshot_date,),) = day.fetchall()
    arguments[-1] = str(snapshot_date)
    done = CliRunner().invoke(main, arguments, env=environment)
    assert done.exit_code == 0, done.output
    *tables, manifest_line, last = done.stdout.splitlines()
    assert len(tables) == len(ALL_TABLES)
    assert re.search(r"enterprise.parquet  2 rows added, 1 removed, [0-9.]+ kB$", tables[0])
    assert manifest_line == str(tmp_path / "delta" / MANIFEST)
    assert last.endswith("; from 0141-update to 0145-full; KBO_PRIVACY=full")


def dated(core: Core, *days: int) -> None:
    """Says of each extract that it is of so many days after the first of a year."""
    with duckdb.connect(str(core.database)) as connection:
        for number, day in zip((140, 141, 142, NEWEST), days, strict=True):
            connection.execute(
                "UPDATE import_jobs SET snapshot_date = $day WHERE extract_number = $number",
                {"day": date(2025, 1, 1) + timedelta(days=day), "number": number},
            )


@pytest.mark.file_only("the dates of extracts are changed by hand")
def test_beside_an_export_are_the_deltas_of_a_month(chain: Chain, tmp_path: Path) -> None:
    core = copy_of(chain, tmp_path / "data")
    dated(core, 0, 20, 30, 31)
    out, deltas = tmp_path / "out", tmp_path / "deltas"
    for foreign in ("mine", "0001-full_0002-update", ".0001-full_0002-update.unfinished"):
        (deltas / foreign).mkdir(parents=True)
        (deltas / foreign / "notes.txt").touch()
    _, made = write_export_and_deltas(settings_of(core), out, deltas)
    own = {"0140-full_0141-update", "0141-update_0142-update", "0142-update_0145-full"}
    net = {"0140-full_0145-full", "0141-update_0145-full"}
    theirs = {"mine", "0001-full_0002-update"}  # nothing in them says that they are ours
    assert {path.name for path in deltas.iterdir()} == own | net | theirs
    assert made.keys() == net | {"0142-update_0145-full"}
    for bases, steps in ((140, sorted(own)), (140, ["0140-full_0145-full"])):
        base = shutil.copytree(chain.export(bases), tmp_path / steps[0])
        for step in steps:
            apply_delta(settings_of(core), base, deltas / step)
        for table in ALL_TABLES:
            assert rows(base, table.name) == rows(out, table.name)
    before = {name: (deltas / name).stat().st_ino for name in own | net}
    (deltas / "0140-full_0141-update" / "code.parquet").write_bytes(b"")
    write_export_and_deltas(settings_of(core), out, deltas)
    after = {name: (deltas / name).stat().st_ino for name in own | net}
    assert {n for n in before if before[n] != after[n]} == {"0140-full_0141-update"}
    dated(core, 0, 1, 39, 40)  # which leaves one net delta, of 7 and of 31 days
    write_export_and_deltas(settings_of(core), out, deltas)
    kept = {"0141-update_0142-update", "0142-update_0145-full", "0141-update_0145-full"}
    assert {path.name for path in deltas.iterdir()} == kept | theirs
    (deltas / "0142-update_0145-full" / "notes.txt").touch()
    (deltas / "0142-update_0145-full" / MANIFEST).unlink()
    with pytest.raises(ExportError, match="in it is not of a delta"):
        write_export_and_deltas(settings_of(core), out, deltas)


DOCUMENTED = (REPOSITORY / "docs" / "certainty.md").read_text()
STATEMENTS = re.findall(r"^```sql\n(.*?)^```", DOCUMENTED, re.DOTALL | re.MULTILINE)


def test_the_sql_of_the_documentation_gives_the_target(
    chain: Chain, base: Path, delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines, hashed, begin, follow = STATEMENTS
    expected = rows(chain.export(NEWEST), "denomination")
    with duckdb.connect() as connection:
        assert sorted(connection.execute(lines).fetchall()) == sorted(expected)
        connection.execute(begin)
        for _ in range(2):
            for statement in connection.extract_statements(follow):
                connection.execute(statement)
            ((count, row_hash),) = connection.execute(hashed).fetchall()
            said = manifest(delta)["to"]["tables"]["denomination"]
            assert (count, str(row_hash)) == (said["rows"], said["row_hash"])
            assert sorted(connection.execute("FROM denomination").fetchall()) == sorted(expected)
            write_delta(chain.settings(), delta, str(NEWEST))
        write_delta(chain.settings(), delta, "141")
        with pytest.raises(duckdb.InvalidInputException, match="begins at another state"):
            connection.execute(follow)
