"""`python -m kbo_pipeline_tests.tools.fuzz TARGET` feeds made-up bytes to readers of ZIP and CSV.

Each target compares the fast ways with a slow and independent one; libFuzzer, by atheris, looks
for bytes that lead to new places in the code. It begins with the cases of docs/bad-input.md.

    zip      any bytes as a ZIP: refused, or each member is what zipfile reads
    csv      any bytes as a CSV file: the counter and the exact reading agree
    staging  the same, through DuckDB: the rows are those that Python's csv module reads in what is
             left without the faulty records; only a header refuses the file
"""

import argparse
import csv
import io
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kbo_pipeline"]):
    from kbo_pipeline.core.errors import ExtractError
    from kbo_pipeline.core.tables import BRANCH
    from kbo_pipeline.fetch.archive import MAX_BYTES, MAX_MEMBERS, open_archive
    from kbo_pipeline.stage.faults import FaultyRecord, RejectedError, faulty_records, read_header
    from kbo_pipeline.stage.unpack import CsvFile, RecordCounter, Unpacked

import duckdb

from kbo_pipeline.core.progress import not_reported
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.stage import staging
from kbo_pipeline_tests.support.zips import csv_text
from kbo_pipeline_tests.tools.bad_input.cases import update
from kbo_pipeline_tests.tools.bad_input.extracts import extract_cases
from kbo_pipeline_tests.tools.bad_input.zips import zip_cases

SECONDS = 10
"""An input that takes longer is a finding."""

HEADER = csv_text(BRANCH.columns, []).encode()
GOOD = b'"9.000.006.626",01-09-1995,"0257.883.408"\n'
DICTIONARY = (
    *('"', '""', ",", "\\x0a", "\\x0d\\x0a", '",\\"', "\\xef\\xbb\\xbf", "\\x00", "\\xc3\\xa9"),
    *("9.000.006.626", "0257.883.408", "01-09-1995", "29-02-2023", "StartDate", "Id"),
    *("PK\\x01\\x02", "PK\\x03\\x04", "PK\\x05\\x06", "PK\\x06\\x06", "PK\\x06\\x07", "meta.csv"),
)
_LEFT_OUT = r"[/\\]$|(^|[/\\])(__MACOSX[/\\]|\._[^/\\]*$|\.DS_Store$)"  # folders, a Mac's own
_STRUCTURE = ("number", "date")  # words in faults of values; all others are of records


class Target:
    """A directory to work in, and what is done with each input."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "input"
        self.runs = self.taken = 0
        self._connection = duckdb.connect(":memory:")
        self._extract = read_extract(update(directory))

    def zip(self, data: bytes) -> None:
        """Any bytes as a ZIP."""
        self.runs += 1
        self.file.write_bytes(data)
        try:
            archive = open_archive(self.file)
            contents = {m.name: b"".join(archive.read(m)) for m in archive.members.values()}
        except ExtractError as error:
            assert len(str(error).splitlines()) == 1, error
            return
        self.taken += 1
        assert len(contents) <= MAX_MEMBERS
        assert sum(map(len, contents.values())) <= MAX_BYTES
        with zipfile.ZipFile(self.file) as other:
            assert all(content == other.read(name) for name, content in contents.items())
            left_out = {*other.namelist()} - {*contents}
        assert all(re.search(_LEFT_OUT, name, re.IGNORECASE) for name in left_out), left_out

    def csv(self, data: bytes) -> None:
        """Any bytes as a CSV file, or as what follows its header."""
        self.runs += 1
        file = self._csv_file(data)
        if file.header.fault is not None:
            return
        faults = [fault for record in self._faulty(file) for fault in record.faults]
        columns = len(file.header.columns)
        of_records = [f for f in faults if not any(word in f.reason for word in _STRUCTURE)]
        if file.counted.fits(columns):
            # Fields are counted over all records: DuckDB looks at each.
            assert all("not" in fault.reason for fault in of_records), (faults, file)
        else:
            assert of_records, file
        if not of_records:
            assert len(_rows(self.file.read_bytes())) == file.rows, file
        if not faults:
            self.taken += 1

    def staging(self, data: bytes) -> None:
        """The same, through DuckDB, with all that is faulty set aside."""
        self.runs += 1
        file = self._csv_file(data)
        faulty = self._faulty(file)
        unpacked = Unpacked({(BRANCH, "insert"): file}, [f for f in [file.header.fault] if f])
        self._connection.execute("ATTACH ':memory:' AS staging")
        try:
            self._connection.execute("USE staging")
            try:
                loading = staging._Loading(
                    self._connection, self._extract, unpacked, None, "kbo retry"
                )
                loading.load(1024, not_reported)
            except RejectedError as error:
                assert file.header.fault is not None, (error, faulty)
                return
            assert file.header.fault is None
            found = self._connection.execute(
                "SELECT id, start_date, enterprise_number FROM staging.branch ORDER BY rowid"
            ).fetchall()
            ((set_aside,),) = self._connection.execute(
                "SELECT count(*) FROM staging.rejected_row"
            ).fetchall()
        finally:
            self._connection.execute("USE memory")
            self._connection.execute("DETACH staging")
        assert set_aside == len(faulty)
        names = [column.name if column else "" for column in file.header.columns]
        expected = []
        for row in _rows(_without(self.file.read_bytes(), faulty)):
            values = dict(zip(names, row, strict=True))
            day = values["start_date"]
            date = datetime.strptime(day, "%d-%m-%Y").date() if day else None
            expected.append((values["id"], date, values["enterprise_number"]))
        assert found == expected, (found, expected)
        self.taken += 1

    def _csv_file(self, data: bytes) -> CsvFile:
        # Half of them with a header of ours.
        data = data[1:] if data[:1] >= b"\x80" else HEADER + data
        self.file.write_bytes(data)
        counter = RecordCounter()
        pieces = (data[i : i + 128] for i in range(0, len(data), 128))
        for _ in counter.counted(pieces):
            pass
        header = read_header(self.file, "branch.csv", BRANCH.columns)
        return CsvFile(self.file, "branch.csv", header, counter.result())

    def _faulty(self, file: CsvFile) -> list[FaultyRecord]:
        if file.header.fault is not None:
            return []
        columns = file.header.columns
        return list(faulty_records(file.path, file.member, columns, BRANCH.columns[0]))


def _without(data: bytes, faulty: Sequence[FaultyRecord]) -> bytes:
    starts = [0, *(record.end for record in faulty)]
    ends = [*(record.start for record in faulty), len(data)]
    return b"".join(data[start:end] for start, end in zip(starts, ends, strict=True))


def _rows(data: bytes) -> list[list[str]]:
    text = data.decode("utf-8-sig")
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))[1:]


def _seed_zips(directory: Path) -> Iterator[Path]:
    for number, case in enumerate([*extract_cases(), *zip_cases()]):
        place = directory / "made" / str(number)
        place.mkdir(parents=True)
        arguments = case.make(place)
        file = Path(arguments[-1])
        if file.is_file() and file.stat().st_size < 100_000:
            yield file


def seeds(directory: Path, target: str) -> Path:
    """Writes what the search begins with; returns the directory."""
    corpus = directory / "corpus"
    corpus.mkdir()
    for number, file in enumerate(_seed_zips(directory)):
        if target == "zip":
            shutil.copyfile(file, corpus / str(number))
            continue
        try:
            with zipfile.ZipFile(file) as archive:
                content = archive.read("branch_insert.csv")
        except (zipfile.BadZipFile, KeyError, OSError, NotImplementedError, RuntimeError):
            continue
        (corpus / f"{number}").write_bytes(b"\xff" + content)
    if target != "zip":
        for number, text in enumerate(
            (GOOD * 3, GOOD.replace(b"\n", b"\r\n") * 2, GOOD.replace(b'"', b""), GOOD + b'"')
        ):
            (corpus / f"good{number}").write_bytes(text)
    return corpus


def main() -> None:
    """Runs a target; ends with an error and the input in a file at the first finding."""
    parser = argparse.ArgumentParser(prog="python -m kbo_pipeline_tests.tools.fuzz")
    parser.add_argument("target", choices=("zip", "csv", "staging"))
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    options.findings.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    (directory / "target").mkdir()
    target = Target(directory / "target")
    corpus = seeds(directory, options.target)
    words = directory / "dictionary"
    words.write_text("".join(f'"{word}"\n' for word in map(_escaped, DICTIONARY)))
    run: Callable[[bytes], None] = getattr(target, options.target)
    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={options.runs}",
            f"-seed={options.seed}",
            f"-timeout={SECONDS}",
            "-max_len=4096",
            "-rss_limit_mb=4096",
            f"-dict={words}",
            f"-artifact_prefix={options.findings}/{options.target}-",
            "-print_final_stats=1",
            str(corpus),
        ],
        lambda data: _counted(run, data, target),
    )
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _counted(run: Callable[[bytes], None], data: bytes, target: Target) -> None:
    run(data)
    if target.runs % 50_000 == 0:
        print(f"{target.runs} inputs, {target.taken} of them taken", flush=True)


def _escaped(word: str) -> str:
    return word.replace('"', '\\"') if "\\" not in word else word


if __name__ == "__main__":
    main()
