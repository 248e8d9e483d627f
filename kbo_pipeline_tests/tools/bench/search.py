"""`make bench-search`: how often a query finds who is meant, first or among five, and how fast.

Queries are made from the register's own names, so that each has a known answer. A name that
several enterprises have answers no question, and none is asked about it.
"""

import argparse
import csv
import random
import statistics
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES
from kbo_pipeline.read.index import build_index
from kbo_pipeline.read.match_file import Columns, match_file
from kbo_pipeline.read.names import name_of
from kbo_pipeline.read.register import PublishedRegister, open_register
from kbo_pipeline.read.types import Entry
from kbo_pipeline.sample.extracts import columns_of, csv_header, csv_rows, write_member
from kbo_pipeline.sample.rows import code_rows
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, csv_field
from kbo_pipeline_tests.tools.bench.vocabulary import FORMS, Vocabulary

FIRST, AMONG_FIVE, WRONG = 95.0, 99.0, 0.5
"""Percent of all queries: found first and among five at least, wrong and certain at most."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Query:
    """What somebody types, and who is meant."""

    kind: str
    text: str
    enterprise: str


@dataclass(slots=True)
class Result:
    """What came of the queries of a kind."""

    queries: int = 0
    first: int = 0
    among_five: int = 0
    certain: int = 0
    wrong_and_certain: int = 0
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)

    def percent(self, count: int) -> float:
        return 100 * count / self.queries

    @property
    def line(self) -> str:
        hundredths = statistics.quantiles(self.seconds, n=100)
        of_processor = statistics.quantiles(self.processor_seconds, n=100)
        return (
            f"| {self.queries:,} | {self.percent(self.first):.1f} |"
            f" {self.percent(self.among_five):.1f} | {self.percent(self.certain):.1f} |"
            f" {self.percent(self.wrong_and_certain):.2f} |"
            f" {1000 * hundredths[49]:.1f} | {1000 * hundredths[94]:.1f} |"
            f" {1000 * of_processor[94]:.1f} |"
        )


def main() -> None:
    """Makes a register, asks, prints a table, and fails below the thresholds."""
    kept = load_settings().data_dir / "bench-search"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--enterprises", type=int, default=300_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lines", type=int, default=0, help="then match a file of so many")
    parser.add_argument("--misses", action="store_true", help="print the queries that missed")
    options = parser.parse_args()
    settings = _register(kept / str(options.enterprises), options.enterprises)
    started = time.perf_counter()
    built = build_index(settings)
    seconds = time.perf_counter() - started
    print(
        f"{built.how}: {built.documents:,} documents of {built.enterprises:,} enterprises,"
        f" {built.bytes / 1e6:.0f} MB, {seconds:.1f} s",
        flush=True,
    )
    with open_register(settings.database, settings.search_dir) as register:
        queries = _queries(register, options.queries, random.Random(options.seed))
        results = _asked(register, queries, show_misses=options.misses)
        lines = _queries(register, options.lines, random.Random(2)) if options.lines else []
    total = _print(results)
    if lines:
        _match(settings, kept, lines)
    failures = [
        f"{what} {value:.2f} %, not {limit} %"
        for what, value, limit, is_right in (
            ("first", total.percent(total.first), FIRST, total.percent(total.first) >= FIRST),
            (
                "among five",
                total.percent(total.among_five),
                AMONG_FIVE,
                total.percent(total.among_five) >= AMONG_FIVE,
            ),
            (
                "wrong and certain",
                total.percent(total.wrong_and_certain),
                WRONG,
                total.percent(total.wrong_and_certain) <= WRONG,
            ),
        )
        if not is_right
    ]
    if failures:
        sys.exit("bench-search: " + "; ".join(failures))


def _print(results: dict[str, Result]) -> Result:
    """Prints the table; returns all together."""
    total = Result()
    for result in results.values():
        for name in ("queries", "first", "among_five", "certain", "wrong_and_certain"):
            setattr(total, name, getattr(total, name) + getattr(result, name))
        total.seconds += result.seconds
        total.processor_seconds += result.processor_seconds
    columns = (
        *("query", "queries", "first %", "among five %", "certain %", "wrong and certain %"),
        *("p50 ms", "p95 ms", "p95 ms of a processor"),
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for kind, result in (results | {"all": total}).items():
        print(f"| {kind} {result.line}")
    return total


def _match(settings: Settings, directory: Path, lines: Sequence[Query]) -> None:
    """Matches the names of queries as a list of customers, and prints how long it takes."""
    source, target = directory / "lines.csv", directory / "matched.csv"
    with source.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name",), *((line.text,) for line in lines)])
    started = time.perf_counter()
    counts = match_file(settings, source, target, Columns("name"), report=lambda *_: None)
    seconds = time.perf_counter() - started
    print(f"matched: {counts.lines:,} lines, {counts.certain:,} certain, {seconds:.0f} s")


def _register(directory: Path, enterprises: int) -> Settings:
    """The settings of a register with so many made-up enterprises, made once."""
    core = Core(directory, batch_rows=1000)
    if not core.database.exists():
        print(f"making a register of {enterprises:,} enterprises in {directory}, once", flush=True)
        directory.mkdir(parents=True, exist_ok=True)
        zip_file = write_names(directory, enterprises)
        core.import_zip(zip_file)
        zip_file.unlink()
    return load_settings(core.settings, root=directory)


def write_names(directory: Path, enterprises: int) -> Path:
    """Writes a Full of made-up enterprises with their names and addresses; nothing else."""
    header = {table.name: csv_header(columns_of(table)) for table in ALL_TABLES}
    with ExitStack() as opened:
        files = {
            table.name: opened.enter_context((directory / f"{table.name}.csv").open("w"))
            for table in TABLES
        }
        for name, file in files.items():
            file.write(header[name])
        columns = {table.name: columns_of(table) for table in TABLES}
        for name, row in _rows(enterprises):
            files[name].write(",".join(map(csv_field, columns[name], row)) + "\n")
    key = ExtractKey(140, "full")
    target = directory / "KboOpenData_0140_2025_10_05_Full.zip"
    meta = (
        '"SnapshotDate","04-10-2025"\n"ExtractTimestamp","05-10-2025 07:40:18"\n'
        f'"ExtractType","{key.type}"\n"ExtractNumber","{key.number}"\n"Version","1.0.0"\n'
    )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        write_member(archive, "meta.csv", '"Variable","Value"\n', [meta])
        codes = csv_rows(CODE, ((row[0], [row[1:]]) for row in code_rows(key.number)))
        write_member(archive, "code.csv", header[CODE.name], codes)
        for table in TABLES:
            file_of_table = directory / f"{table.name}.csv"
            archive.write(file_of_table, file_of_table.name)
            file_of_table.unlink()
    return target


def _rows(enterprises: int) -> Iterator[tuple[str, Row]]:
    """The rows of each enterprise, by table."""
    vocabulary = Vocabulary(1)
    for place in range(enterprises):
        one = vocabulary.enterprise()
        number = _number("0", 2_000_000 + 4 * place)
        unit = _number("2", 4 * place)
        is_legal = one.form is not None
        form = one.form[0] if one.form else None
        yield "enterprise", (number, "AC", "000", "2" if is_legal else "1", form, None, None)
        yield "denomination", (number, "2" if is_legal else "0", "001", one.name)
        if one.other:
            yield "denomination", (number, "1", "001", one.other)
        yield "establishment", (unit, None, number)
        if one.unit:
            yield "denomination", (unit, "2", "003", one.unit)
        where = (None, None, one.zipcode, one.municipality, one.municipality, one.street)
        rest = (None, one.house_number, None, None, None)
        yield "address", (unit, "BAET", *where, *rest)
        if is_legal:
            yield "address", (number, "REGO", *where, *rest)


def _number(first: str, body: int) -> str:
    """A dotted number with right check digits."""
    digits = f"{first}{body:07d}"
    digits += f"{97 - int(digits) % 97:02d}"
    if first == "0":
        return f"{digits[:4]}.{digits[4:7]}.{digits[7:]}"
    return f"{digits[0]}.{digits[1:4]}.{digits[4:7]}.{digits[7:]}"


_NAMES = """
SELECT o.enterprise_number, d.entity_number, d.denomination, e.primary_name, e.juridical_form
FROM current.denomination d
JOIN (
    SELECT establishment_number AS entity_number, enterprise_number FROM current.establishment
    UNION ALL
    SELECT enterprise_number, enterprise_number FROM current.enterprise
) o USING (entity_number)
JOIN current.enterprise e ON e.enterprise_number = o.enterprise_number
ORDER BY hash(d.entity_number), d.denomination
"""


@dataclass(frozen=True, slots=True)
class _Known:
    """A name of the register that one enterprise alone has."""

    enterprise: str
    is_unit: bool
    text: str
    is_main: bool
    form: str | None


def _queries(register: PublishedRegister, count: int, at_random: random.Random) -> list[Query]:
    """So many queries, about as many of each kind."""
    names = [
        _Known(enterprise, entity != enterprise, text, text == main, form)
        for enterprise, entity, text, main, form in register.sql(_NAMES).fetchall()
    ]
    owners: dict[str, set[str]] = {}
    for name in names:
        owners.setdefault(name_of(name.text).turned, set()).add(name.enterprise)
    names = [n for n in names if len(owners[name_of(n.text).turned]) == 1]
    at_random.shuffle(names)
    queries: list[Query] = []
    for kind, make in _KINDS.items():
        wanted = (count - len(queries)) // (len(_KINDS) - [*_KINDS].index(kind))
        made = (Query(kind, text, n.enterprise) for n in names if (text := make(n, at_random)))
        queries += [query for query, _ in zip(made, range(wanted), strict=False)]
    at_random.shuffle(queries)
    return queries


def _one_edit(name: _Known, at_random: random.Random) -> str | None:
    """A letter is missing, too many, another one, or has changed places with the next."""
    text = name.text
    places = [place for place, c in enumerate(text) if c.isalpha()]
    if not name.is_main or len(places) < 5:
        return None
    at, letter = at_random.choice(places), at_random.choice(_LETTERS)
    ways = (
        text[:at] + text[at + 1 :],
        text[:at] + letter + text[at:],
        text[:at] + letter + text[at + 1 :],
        text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :],
    )
    edited = at_random.choice(ways)
    return edited if edited != text else None


def _swapped(name: _Known, at_random: random.Random) -> str | None:
    words = name.text.replace(",", " ").split()
    if not name.is_main or len(words) < 2:
        return None
    at = at_random.randrange(len(words) - 1)
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def _form_added(name: _Known, at_random: random.Random) -> str | None:
    form = next((form for form in FORMS if form[0] == name.form), None)
    if not name.is_main or form is None or name_of(name.text).form is not None:
        return None
    added = at_random.choice(form[1:3])
    return at_random.choice((f"{name.text} {added}", f"{added.lower()} {name.text}"))


def _form_left(name: _Known, _: random.Random) -> str | None:
    named = name_of(name.text)
    if not name.is_main or named.form is None:
        return None
    return " ".join(named.words)


def _dots(name: _Known, at_random: random.Random) -> str | None:
    """An abbreviation with dots where there are none, or without them; else the form with dots."""
    if not name.is_main:
        return None
    first, *rest = name.text.split()
    if rest and first.isupper() and len(first) > 1:
        letters = first.replace(".", "")
        other = letters if "." in first else ".".join(letters) + "."
        return " ".join((other, *rest))
    form = next((form for form in FORMS if form[0] == name.form), None)
    if form is None or name_of(name.text).form is not None or at_random.random() < 0.8:
        return None
    return f"{name.text} {form[3]}"


def _other_language(name: _Known, _: random.Random) -> str | None:
    return None if name.is_main or name.is_unit else name.text


def _trade_name(name: _Known, _: random.Random) -> str | None:
    return name.text if name.is_unit else None


_KINDS: dict[str, Callable[[_Known, random.Random], str | None]] = {
    "legal form left out": _form_left,
    "another language's name": _other_language,
    "dots": _dots,
    "a unit's trade name": _trade_name,
    "legal form added": _form_added,
    "words swapped": _swapped,
    "one edit": _one_edit,
}


def _asked(
    register: PublishedRegister, queries: Sequence[Query], *, show_misses: bool
) -> dict[str, Result]:
    """What comes of the queries, by kind."""
    results: dict[str, Result] = {}
    for query in queries:
        result = results.setdefault(query.kind, Result())
        started, used = time.perf_counter(), time.process_time()
        found = [match.enterprise_number for match in register.find(query.text, limit=5)]
        result.seconds.append(time.perf_counter() - started)
        result.processor_seconds.append(time.process_time() - used)
        result.queries += 1
        is_first = found[:1] == [query.enterprise]
        result.first += is_first
        result.among_five += query.enterprise in found
        (matched,) = register.match([Entry(query.text)])
        is_wrong = matched.best is None or matched.best.enterprise_number != query.enterprise
        result.certain += matched.certain
        result.wrong_and_certain += matched.certain and is_wrong
        if show_misses and (not is_first or (matched.certain and is_wrong)):
            names = [match.matched for match in register.find(query.text, limit=3)]
            print(f"{query}: {names}; {matched.certain} {matched.why}")
    return dict(sorted(results.items()))


if __name__ == "__main__":
    main()
