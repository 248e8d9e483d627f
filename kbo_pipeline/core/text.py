"""Texts for people: in one line, shortened, safe on a terminal; numbers, sizes, errors.

Texts of others are shown, never obeyed: `sanitize` what comes from KBO or from a file's name.

Our own errors name the thing, the place and the next step. Those of the system and of libraries
come to people by way of the command line and of Dagster's runs; both ask `line_of`. What it does
not know is a fault of this program, and keeps its traceback.
"""

import errno
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

_BLANKS = {ord(blank): " " for blank in "\t\n\v\f\r\x85\u2028\u2029"}
_JOINERS = "\u200c\u200d"  # parts of words and of emoji


def sanitize(text: object) -> str:
    """A text in one line, whose control and formatting characters are shown as escapes.

    Blanks of any kind become blanks. What is left cannot move the cursor, change colours, or turn
    the direction in which the rest of the line is read.
    """
    return "".join(
        escape(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in _JOINERS else c
        for c in str(text).translate(_BLANKS)
    )


def printable(text: str) -> str:
    """A text in one line that any terminal and any file system takes, whatever is in it."""
    line = one_line(text) if "\n" in text or "\r" in text else text
    return "".join(c if c.isprintable() else escape(c) for c in line)


def escape(text: str) -> str:
    """A text in ASCII, with an escape for each other character."""
    return text.encode("unicode_escape").decode()


def one_line(text: object) -> str:
    """A text without line breaks and repeated blanks."""
    return " ".join(str(text).split())


def first_line(text: object) -> str:
    """The first line of a text or of what an error says; libraries append hints and SQL."""
    return str(text).strip().split("\n", 1)[0]


def cut(text: str, longest: int) -> str:
    """A text cut to a number of characters; where it was longer, it ends in `…`."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def counted(number: int, noun: str, nouns: str | None = None) -> str:
    """A number with its noun: `1 row`, `2,000 rows`."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def listed(names: Iterable[object], most: int) -> str:
    """The first names, and how many more there are."""
    texts = [str(name) for name in names]
    more = f", and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def duration(seconds: float) -> str:
    """A duration as people say it: `40 s`, `2 min`, `1 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """The local time of seconds since the epoch: `2025-10-11 09:30`."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def megabytes(length: float, digits: int = 0) -> str:
    """A number of bytes in units of 1,000,000."""
    return f"{length / 1e6:,.{digits}f} MB"


OUT_OF_MEMORY = (
    "out of memory; give it more by KBO_MEMORY_MB where the machine has it, or end other programs"
)

OUT_OF_MEMORY_CLASSES = ("OutOfMemoryException", "MemoryError")
"""Names of such errors, for what is left of them in Dagster's records."""

_NEXT_STEPS = {
    errno.EACCES: "give the user who runs this access to it, or name another place",
    errno.EPERM: "give the user who runs this access to it, or name another place",
    errno.EROFS: "make it writable, or name another place",
    errno.ENOSPC: "free disk space, then run the command again",
    errno.EDQUOT: "free disk space, then run the command again",
    errno.ENOTDIR: "a file is where a directory is expected: move it away, or name another place",
    errno.EISDIR: "a directory is where a file is expected: move it away, or name another place",
    errno.EEXIST: "something else is there: move it away, or name another place",
    errno.ENOENT: "name a place that is there",
    errno.ELOOP: "a symbolic link leads to itself: remove it, or name another place",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}

_LONGEST = 500
"""Characters of a library's message that fit a line."""


def line_of(error: BaseException) -> str | None:
    """An error as one line; None for a fault of this program."""
    for table in (_FOREIGN, _WRAPPERS):
        for link in _chain(error):
            for module, name, says in table:
                # What has not been imported cannot have been raised.
                kind = getattr(sys.modules.get(module), name, None)
                if isinstance(kind, type) and isinstance(link, kind):
                    return one_line(says(link))
    return None


def run(name: str, program: Callable[[], None]) -> None:
    """Runs a program of ours that is no command; its errors are one line too.

    Raises:
        SystemExit: it failed.
    """
    try:
        program()
    except Exception as error:  # one that is not known goes on, with its traceback
        line = line_of(error)
        if line is None:
            raise
        sys.exit(f"{name}: {line}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _of_system(error: BaseException) -> str:
    assert isinstance(error, OSError)
    problem = error.strerror or cut(first_line(error), _LONGEST) or type(error).__name__
    step = _NEXT_STEPS.get(error.errno or 0, "kbo doctor says more")
    if error.filename is not None:
        place = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return f"{place}: {problem}; {step}"
    if error.errno == errno.ENOENT and not _has_working_directory():
        return "the working directory is gone; cd to one that is there"
    if _is_of_printing(error):
        return f"standard output: {problem}; {step}"
    return f"{problem}; {step}"


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _is_of_printing(error: BaseException) -> bool:
    """Whether it was raised by what prints: a stream that is full does not say which it is."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return module.split(".")[0] in ("click", "rich")


def _of_encoding(error: BaseException) -> str:
    assert isinstance(error, UnicodeEncodeError)
    shown = escape(error.object[error.start : error.end][:20])
    return (
        f"{shown!r}: a character that {error.encoding} does not have; rename what holds it, or use"
        " a UTF-8 locale (LC_ALL=C.UTF-8)"
    )


def _of_decoding(error: BaseException) -> str:
    assert isinstance(error, UnicodeDecodeError)
    return f"byte {error.start} of a text is not {error.encoding}; save it as UTF-8"


def _of_postgres(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    code = getattr(cause, "pgcode", None)
    step = "kbo doctor says more"
    if code == "25006":  # read_only_sql_transaction
        step = "let DAGSTER_POSTGRES_URL name a server that takes writes"
    elif code == "42501":  # insufficient_privilege
        step = "give the role of DAGSTER_POSTGRES_URL what it lacks"
    return f"PostgreSQL: {cut(first_line(cause), _LONGEST)}; {step}"


def _of(library: str) -> Callable[[BaseException], str]:
    return lambda error: f"{library}: {cut(first_line(error), _LONGEST)}; kbo doctor says more"


_FOREIGN: tuple[tuple[str, str, Callable[[BaseException], str]], ...] = (
    ("kbo_pipeline.core.errors", "KboError", str),
    ("builtins", "MemoryError", lambda error: OUT_OF_MEMORY),
    ("duckdb", "OutOfMemoryException", lambda error: OUT_OF_MEMORY),
    ("duckdb", "Error", _of("DuckDB")),
    ("sqlalchemy.exc", "SQLAlchemyError", _of_postgres),
    ("psycopg2", "Error", _of_postgres),
    ("builtins", "UnicodeEncodeError", _of_encoding),
    ("builtins", "UnicodeDecodeError", _of_decoding),
    ("builtins", "OSError", _of_system),
)
"""Module, class, and how it becomes a line; the first that fits counts, outermost error first."""

_WRAPPERS: tuple[tuple[str, str, Callable[[BaseException], str]], ...] = (
    ("dagster", "DagsterError", _of("Dagster")),
    ("dagster_postgres.utils", "DagsterPostgresException", _of_postgres),
    ("dagster_shared.check", "CheckError", _of("Dagster")),
)
"""Errors that mostly wrap another, which says more."""
