"""The search index: a directory beside the published register, made from its views.

It holds the names, addresses and numbers of exactly one extract, whole, as documents of tantivy.
Its mark says of which: where that is not what the register has, nobody uses it. `search.py` asks
it; `build_index` makes it, or brings it up to date with what the extracts since have touched.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import duckdb
import tantivy

from kbo_pipeline.core.database import Database, connect
from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import PublishedState
from kbo_pipeline.core.files import exclusive_lock, link_or_copy, replace_directory
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import Privacy
from kbo_pipeline.read import index_sql
from kbo_pipeline.read.names import fold, name_of
from kbo_pipeline.read.published import open_published
from kbo_pipeline.read.state_sql import HIDES

FORMAT = "kbo_pipeline search 3"
"""The layout of the documents; an index with another one is made again."""

MARK = "index.json"
"""The file in the directory that says what the index is of; written last."""

Report = Callable[[str, int, int | None], None]
"""Takes what is done at the moment, how many documents are written, and of how many."""

_ROWS = 10_000  # that are taken from DuckDB at once
_CHUNK = 1 << 20
_LOCK_SECONDS = 3600.0  # another process makes the same index; it takes two minutes at full size
_LARGEST_SHARE = 0.2  # of the enterprises; where more are touched, all are written again


@dataclass(frozen=True, slots=True)
class Mark:
    """What an index is of.

    Attributes:
        extract: the newest published extract.
        published_at: when that was published: it tells an extract from one that took its place
            after a rollback, a repair or a rebuild.
        privacy: who is in it.
    """

    extract: str
    published_at: str
    privacy: Privacy


@dataclass(frozen=True, slots=True)
class Built:
    """An index that is up to date.

    Attributes:
        how: it was so already (`kept`), or it was brought up to date, or made anew.
        enterprises: how many were written.
        documents: how many it has.
    """

    mark: Mark
    how: Literal["kept", "updated", "made"]
    enterprises: int
    documents: int
    bytes: int


def read_mark(connection: duckdb.DuckDBPyConnection) -> Mark:
    """What an index of the register that is the default database must be of.

    Raises:
        NotReadyError: nothing is published.
    """
    row = connection.execute(index_sql.NEWEST).fetchone()
    if row is None:
        raise NotReadyError("no extract is published; kbo import a Full")
    hides = connection.execute(HIDES).fetchone() is not None
    return Mark(row[0], _moment(row[1]), "legal-persons" if hides else "full")


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


class Record(NamedTuple):
    """What a document says: an enterprise, with some of its units.

    Attributes:
        part: 0 for the document with the names of the enterprise itself, and its first units.
        form: KBO's code.
        zipcode, municipality, struck_off: of the seat.
        places: the postcodes and municipalities of all addresses; not folded.
        names: but for the main one; each with the number that has it.
        addresses: likewise, in each language.
    """

    part: int
    enterprise: str
    name: str
    status: str | None
    form: str | None
    zipcode: str | None
    municipality: str | None
    struck_off: str | None
    places: str | None
    names: list[tuple[str, str]] | None
    addresses: list[tuple[str, str]] | None

    @property
    def place(self) -> frozenset[str]:
        """The words of what is said of its place."""
        texts = [self.places or "", *(text for _, text in self.addresses or ())]
        return frozenset(fold(" ".join(texts)).split())


class SearchIndex:
    """An index that is open for reading, by any number of threads; it never changes.

    Attributes:
        mark: what it is of.
    """

    def __init__(self, directory: Path, wanted: Mark) -> None:
        """Opens the index in a directory.

        Raises:
            NotReadyError: there is none, or it is of something else, or damaged; says why.
        """
        self.mark = check_mark(directory, wanted)
        with _explained(directory):
            index = tantivy.Index.open(str(directory))
            index.config_reader("manual")
            index.reload()
            self._schema = index.schema
            self._searcher = index.searcher()
        self._directory = directory

    def term(self, field: str, value: str) -> tantivy.Query:
        """Documents with a word in a field."""
        return tantivy.Query.term_query(self._schema, field, value)

    def nearly(
        self, field: str, value: str, edits: int, *, is_prefix: bool = False
    ) -> tantivy.Query:
        """Documents with a word that is so many edits away at most, or that begins so."""
        return tantivy.Query.fuzzy_term_query(self._schema, field, value, edits, True, is_prefix)

    def documents(self, query: tantivy.Query, limit: int) -> list[Record]:
        """The records of the best documents.

        Raises:
            NotReadyError: the index turns out to be damaged.
        """
        with _explained(self._directory):
            hits = self._searcher.search(query, limit, count=False).hits
            records = (bytes(self._searcher.doc(at)["record"][0]) for _, at in hits)
            return [Record(*json.loads(record)) for record in records]


def why_not_current(settings: Settings, state: PublishedState) -> str | None:
    """Why there is no index of what is published, in one line; None where there is one.

    Args:
        settings: say where it is, and who is to be in it.
        state: what is published.
    """
    if state.newest is None or state.published_at is None:
        return None
    wanted = Mark(str(state.newest), _moment(state.published_at), settings.privacy)
    try:
        check_mark(settings.search_dir, wanted)
    except NotReadyError as error:
        return str(error)
    return None


def check_mark(directory: Path, wanted: Mark) -> Mark:
    """Makes sure that an index is of what is wanted, and that its files have their lengths.

    Raises:
        NotReadyError: it is not there, or not so; says why.
    """
    content = _read_mark_file(directory)
    present = Mark(content["extract"], content["published_at"], content["privacy"])
    if present != wanted:
        what = f"of {present.extract}"
        if present.extract == wanted.extract:
            what = "of another publication of it"
        if present.privacy != wanted.privacy:
            what = f"made with KBO_PRIVACY={present.privacy}"
        raise _unusable(directory, f"the search index is {what}, not {wanted.extract}")
    for name, (length, _) in content["files"].items():
        try:
            actual = (directory / name).stat().st_size
        except OSError:
            actual = None
        if actual != length:
            raise _unusable(directory, f"the search index is damaged: {name} is not whole")
    return present


def _read_mark_file(directory: Path) -> dict[str, Any]:
    try:
        content = json.loads((directory / MARK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _unusable(directory, "there is no search index") from None
    except (OSError, ValueError) as error:
        why = f"the search index is damaged: {MARK} cannot be read ({type(error).__name__})"
        raise _unusable(directory, why) from None
    is_ours = isinstance(content, dict) and content.get("format") == FORMAT
    if not is_ours or not {"extract", "published_at", "privacy", "files"} <= content.keys():
        raise _unusable(directory, "the search index is of another version")
    return cast("dict[str, Any]", content)


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turns tantivy's errors, and panics over damaged files, into one that names the index."""
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of Rust: no Exception, in no module
        if not is_panic and not isinstance(error, ValueError):
            raise
        line = " ".join(str(error).split())[:100]
        raise _unusable(directory, f"the search index cannot be read ({line})") from None


def _unusable(directory: Path, why: str) -> NotReadyError:
    return NotReadyError(f"{directory}: {why}; kbo index makes it")


def build_index(settings: Settings, *, report: Report | None = None) -> Built:
    """Makes sure that there is an index of what is published, and that it is sound.

    One that is so stays. One of an earlier extract that is still published is brought up to date:
    documents of enterprises that were touched since are written again. Any other is replaced.
    Readers find the old one or the new one, at any moment.

    Args:
        settings: say where the register is, and how much memory there is.
        report: takes how far it is.

    Raises:
        NotReadyError: nothing is published.
        RegisterError: the published file is no register.
        StorageError: another process has been making one for an hour, or there is no room.
    """
    directory = settings.search_dir
    with (
        exclusive_lock(settings.work_dir / "search.lock", _LOCK_SECONDS),
        connect(settings) as connection,
        open_published(connection, settings.database),
    ):
        wanted = read_mark(connection)
        present = _sound_mark(directory)
        if present == wanted:
            return _built(directory, wanted, "kept", 0)
        connection.execute(f"SET memory_limit = '{settings.memory_mb // 2}MiB'")
        database = Database(connection)
        with replace_directory(directory) as unfinished:
            is_update = present is not None and _fill_touched(database, present, wanted)
            if is_update:
                _take_over(directory, unfinished)
            enterprises = _write(database, unfinished, settings, report, is_update=is_update)
            _write_mark_file(unfinished, wanted)
        return _built(directory, wanted, "updated" if is_update else "made", enterprises)


def _sound_mark(directory: Path) -> Mark | None:
    """The mark of an index all of whose bytes are as they were written; None for any other."""
    try:
        content = _read_mark_file(directory)
        files = {name: _checksum(directory / name) for name in content["files"]}
        if files != {name: tuple(checksum) for name, checksum in content["files"].items()}:
            return None
    except (NotReadyError, OSError):
        return None
    return Mark(content["extract"], content["published_at"], content["privacy"])


def _built(directory: Path, mark: Mark, how: Literal["kept", "updated", "made"], n: int) -> Built:
    size = sum(path.stat().st_size for path in directory.iterdir())
    with _explained(directory):
        documents = tantivy.Index.open(str(directory)).searcher().num_docs
    return Built(mark, how, n, documents, size)


def _fill_touched(database: Database, present: Mark, wanted: Mark) -> bool:
    """Fills the table of enterprises to be written again; False where all are.

    So it is where what the index is of is not published any more, or was published anew; where few
    enterprises have stayed as they were; and where who may be shown can have changed.
    """
    if present.privacy != wanted.privacy or wanted.privacy != "full":
        return False
    row = database.row(index_sql.PUBLISHED, key=present.extract)
    if row is None or _moment(row[1]) != present.published_at:
        return False
    database.execute(index_sql.FILL_TOUCHED, since=row[0])
    touched = database.count(index_sql.COUNT_TOUCHED)
    return touched <= _LARGEST_SHARE * database.count(index_sql.COUNT_ENTERPRISES)


def _take_over(directory: Path, unfinished: Path) -> None:
    """Gives the new index the files of the old one; tantivy never writes into one of data."""
    for path in directory.iterdir():
        if path.name == MARK or path.name.endswith(".lock"):
            continue
        if path.suffix == ".json":
            shutil.copyfile(path, unfinished / path.name)
        else:
            link_or_copy(path, unfinished / path.name)


def _write(
    database: Database,
    directory: Path,
    settings: Settings,
    report: Report | None,
    *,
    is_update: bool,
) -> int:
    """Writes the documents of all enterprises, or of those that were touched; how many are."""
    for statement in index_sql.prepare(is_update=is_update):
        database.execute(statement)
    enterprises = database.count(index_sql.COUNT_SUBJECTS)
    index = tantivy.Index.open(str(directory)) if is_update else _new(directory)
    threads = max(1, min(os.cpu_count() or 1, 4))
    heap = min(1024, settings.memory_mb // 4) << 20
    writer = index.writer(max(heap, threads * 16 << 20), threads)
    if is_update:
        for (number,) in database.execute(index_sql.TOUCHED).fetchall():
            writer.delete_documents_by_term("number", number)
    written = 0
    result = database.execute(index_sql.DOCUMENTS)
    while rows := result.fetchmany(_ROWS):
        if report is not None:
            report("documents", written, None)
        for row in rows:
            writer.add_document(_document(row))
        written += len(rows)
    writer.commit()
    writer.wait_merging_threads()
    return enterprises


def _new(directory: Path) -> tantivy.Index:
    builder = tantivy.SchemaBuilder()
    for name, (tokenizer, option) in _FIELDS.items():
        builder.add_text_field(name, tokenizer_name=tokenizer, index_option=option)
    builder.add_bytes_field("record", stored=True)  # a text would be looked for, too
    return tantivy.Index(builder.build(), path=str(directory))


_FIELDS: Mapping[str, tuple[str, str]] = {
    "number": ("raw", "basic"),
    "name": ("whitespace", "freq"),
    "whole": ("raw", "basic"),
    "place": ("whitespace", "basic"),
    "zipcode": ("raw", "basic"),
    "status": ("raw", "basic"),
}
"""What is looked for: each field, how its text becomes words, and what is kept of them."""


def _document(row: Sequence[Any]) -> tantivy.Document:
    part, enterprise, main, status, zipcodes, numbers, texts, places, record = row
    document = tantivy.Document()
    document.add_bytes("record", record.encode())
    for number in numbers if part == 0 else (enterprise, *numbers):
        document.add_text("number", number)
    if status:
        document.add_text("status", status)
    for zipcode in zipcodes or ():
        document.add_text("zipcode", zipcode)
    if places:
        document.add_text("place", fold(places))
    texts = texts or []
    names = [
        name_of(text) for text in ([main, *texts] if part == 0 and main != enterprise else texts)
    ]
    for whole in {name.whole for name in names if name.words}:
        document.add_text("whole", whole)
    if names:
        document.add_text("name", " ".join(word for name in names for word in name.words))
    return document


def _write_mark_file(directory: Path, mark: Mark) -> None:
    files = {
        path.name: _checksum(path)
        for path in sorted(directory.iterdir())
        if not path.name.endswith(".lock")
    }
    content = {"format": FORMAT} | asdict(mark) | {"files": files}
    (directory / MARK).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _checksum(path: Path) -> tuple[int, int]:
    """The length and the CRC of a file."""
    length = checksum = 0
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            checksum = zlib.crc32(block, checksum)
            length += len(block)
    return length, checksum
