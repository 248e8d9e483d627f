"""ZIPs that are sound, of extracts that are not."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import (
    ACTIVITY,
    ADDRESS,
    BRANCH,
    CONTACT,
    ENTERPRISE,
    ESTABLISHMENT,
    Table,
)
from kbo_pipeline_tests.support.zips import csv_text, write_extract
from kbo_pipeline_tests.tools.bad_input.cases import (
    DELETES,
    LATER_FULL,
    NUMBER,
    ROWS,
    Case,
    member_case,
    update,
)

_META = {
    "SnapshotDate": "22-05-2025",
    "ExtractTimestamp": "23-05-2025 07:40:18",
    "ExtractType": "update",
    "ExtractNumber": "141",
    "Version": "1.0.0",
}


STRICT = {"KBO_MAX_FAULTY_ROWS": "0"}
"""No row is set aside; by default a few would be, and the rest imported."""


def extract_cases() -> list[Case]:
    """The cases of this module."""
    strict = [replace(case, settings=STRICT) for case in (*_records(), *_values())]
    return [*_metas(), *_files(), *strict, *_orders()]


def meta(**changes: str | None) -> str:
    """A `meta.csv` with other values, or for None without them."""
    values = _META | changes
    lines = [f'"{name}","{value}"' for name, value in values.items() if value is not None]
    return "\n".join(['"Variable","Value"', *lines, ""])


def _metas() -> list[Case]:
    wrong: dict[str, str | bytes | None] = {
        "missing": None,
        "empty": b"",
        "the header alone": '"Variable","Value"\n',
        "a blank line": meta() + "\n",
        "three fields in a line": meta() + '"a","b","c"\n',
        "a quote that is not closed": meta() + '"a","b\n',
        "UTF-16": meta().encode("utf-16"),
        "no UTF-8": meta().encode() + b'"a","\xff"\n',
        "a variable is there twice": meta() + '"ExtractNumber","141"\n',
        "100 kB long": meta() + '"a","' + "x" * 100_000 + '"\n',
        **{f"no {name}": meta(**{name: None}) for name in _META},
        **{
            f"ExtractNumber {text!r}": meta(ExtractNumber=text)
            for text in ("", "0", "-141", "+141", " 141", "141.0", "14l", "\u0661\u0664\u0661")
        },
        "ExtractNumber 142 with zeros before it": meta(ExtractNumber="00000142"),
        "ExtractNumber of 99 digits": meta(ExtractNumber="9" * 99),
        "ExtractNumber of another extract": meta(ExtractNumber="142"),
        **{f"ExtractType {text!r}": meta(ExtractType=text) for text in ("", "delta", "full")},
        **{
            f"SnapshotDate {text!r}": meta(SnapshotDate=text)
            for text in ("", "31-02-2025", "2025-05-22", "22-5-2025", "22/05/2025", "22-05-25")
        },
        "SnapshotDate in the future": meta(SnapshotDate="01-01-2999"),
        **{
            f"ExtractTimestamp {text!r}": meta(ExtractTimestamp=text)
            for text in ("", "23-05-2025", "23-05-2025 24:00:00", "23-05-2025 7:40:18")
        },
    }
    return [member_case(f"meta.csv: {name}", "meta.csv", text) for name, text in wrong.items()]


def _files() -> list[Case]:
    header = csv_text(CONTACT.columns, [])
    rows = csv_text(CONTACT.columns, ROWS["contact"])
    contact = "contact_insert.csv"
    wrong: dict[str, str | bytes | None] = {
        "one of the two files is missing": None,
        "an empty file": b"",
        "a blank line instead of the header": "\n" + rows,
        "no header": rows.split("\n", 1)[1],
        "a column is missing": '"EntityNumber","EntityContact","ContactType"\n',
        "a column twice": header.replace('"Value"', '"Value","Value"'),
        "a column in other case": header.replace('"Value"', '"value"'),
        "semicolons": rows.replace(",", ";"),
        "tabs": rows.replace(",", "\t"),
        "UTF-16": rows.encode("utf-16"),
        "Latin-1 in the header": header.replace("Value", "Valeur\xe9").encode("latin-1"),
        "the header of another table": csv_text(BRANCH.columns, []),
        "a web page": "<html>\n<body>Service unavailable</body>\n</html>\n",
        "another ZIP": b"PK\3\4" + bytes(100),
        "a header of 70 kB": '"' + "x" * 70_000 + '"\n',
    }
    return [
        *(member_case(f"{contact}: {name}", contact, text) for name, text in wrong.items()),
        member_case("code.csv: missing", "code.csv", None),
        member_case("branch_delete.csv: missing", "branch_delete.csv", None),
        member_case("enterprise.csv of a Full: missing", "enterprise.csv", None, key=LATER_FULL),
        member_case(
            "enterprise.csv of a Full: the header alone",
            "enterprise.csv",
            csv_text(ENTERPRISE.columns, []),
            key=LATER_FULL,
        ),
        member_case("activity.csv of a Full: empty", "activity.csv", b"", key=LATER_FULL),
    ]


def _records() -> list[Case]:
    header = csv_text(CONTACT.columns, [])
    good = f'"{NUMBER}","ENT","WEB","example.org"'
    long = random.Random(1).randbytes(1_500_000).hex()
    wrong: dict[str, str | bytes] = {
        "a field too few": f'"{NUMBER}","ENT","WEB"\n',
        "a field too many": good + ',"more"\n',
        "an empty field too many": good + ",\n",
        "a field less and one more in the next": f'"{NUMBER}","ENT","WEB"\n{good},"x"\n',
        "a single word": "x\n",
        "a blank line": f"\n{good}\n",
        "a blank line at the end": f"{good}\n\n",
        "blanks in a line": f"   \n{good}\n",
        "a NUL in a text": good.replace("example", "exa\0mple") + "\n",
        "a NUL between records": f"{good}\n\0\n",
        "1 KiB of NULs at the end": f"{good}\n" + "\0" * 1024,
        "no UTF-8 in a text": good.encode().replace(b"example", b"ex\xe9mple") + b"\n",
        "UTF-8 that is cut off at the end": good.encode()[:-1] + b"\xc3",
        "UTF-8 in a longer form than needed": good.encode().replace(b"example", b"\xc0\xafx"),
        "half a surrogate pair": good.encode().replace(b"example", b"\xed\xa0\x80x"),
        "a quote too many": good.replace('"example', '"example, "', 1)[:-1] + "\n",
        "a quote that nothing closes": f'{good}\n"{NUMBER}","ENT","WEB","\n',
        "a quote inside a text": good.replace("example", 'exa"mple') + "\n",
        "a quote escaped by a back-slash": good.replace("example", 'exa\\"mple') + "\n",
        "text after the closing quote": good + "x\n",
        "a blank before a quote": good.replace(',"WEB"', ', "WEB"') + "\n",
        "a quote inside a bare value": good.replace('"WEB"', 'W"EB') + "\n",
        "single quotes": good.replace('"', "'").replace("example", "exam,ple") + "\n",
        "a carriage return alone": good.replace('"WEB"', "W\rEB") + "\n",
        "carriage returns for line ends": f"{good}\r{good}\r",
        "two kinds of line ends": f"{good}\r\n{good}\n",
        "a text of 3 MB": good.replace("example", long) + "\n",
        "a comment": f"# made by hand\n{good}\n",
        "the header again in the middle": f"{good}\n{header}{good}\n",
    }
    member = "contact_insert.csv"
    return [
        member_case(
            f"{member}: {name}",
            member,
            header + text if isinstance(text, str) else header.encode() + text,
        )
        for name, text in wrong.items()
    ]


def _values() -> list[Case]:
    cases = []
    for text in (
        *("", "0200065765", "0200.065.76", "0200.065.7655", "2.000.000.339", "9.000.006.626"),
        *("BE0200.065.765", " 0200.065.765", "0200.065.765 ", "0200,065,765", "O200.065.765"),
        *("\u0660200.065.765", "\uff10200.065.765", "'; DROP TABLE enterprise; --", "=1+1"),
        *("../../etc/passwd", "0200.065.765\n", "NULL", "0200.065.765\u200b"),
    ):
        row = (text, *ROWS["enterprise"][0][1:])
        content = csv_text(ENTERPRISE.columns, [row])
        cases.append(member_case(f"EnterpriseNumber {text!a}", "enterprise_insert.csv", content))
    kinds: list[tuple[Table, str]] = [
        (ESTABLISHMENT, NUMBER),
        (ESTABLISHMENT, "9.000.006.626"),
        (BRANCH, "9.000.006.6266"),
        (CONTACT, "30.000.000.339"),
        (ACTIVITY, "2000.000.33"),
    ]
    for table, text in kinds:
        values = (text, *(NUMBER if c.number else None for c in table.columns[1:]))
        cases.append(
            member_case(
                f"{table.columns[0].csv_name} of {table.name}: {text}",
                f"{table.name}_insert.csv",
                csv_text(table.columns, [values]),
            )
        )
    cases.append(
        member_case(
            "a deleted key that is no number",
            "address_delete.csv",
            csv_text(ADDRESS.columns[:1], [("all",)]),
        )
    )
    cases.append(
        member_case(
            "a branch of an enterprise that is no number",
            "branch_insert.csv",
            csv_text(BRANCH.columns, [("9.000.006.626", None, "none")]),
        )
    )
    for text in (
        *("31-02-2020", "29-02-2023", "00-01-2020", "01-13-2020", "2020-01-31", "31/01/2020"),
        *("1-1-2020", "01-01-20", "01-01-0000", "01-01-12020", "+1-01-2020", "01 -01-2020"),
        *("01-01-2020 00:00:00", "today", "infinity", "0", "\u0660\u0661-01-2020"),
    ):
        content = csv_text(ENTERPRISE.columns, [])
        content += f'"{NUMBER}","AC","000","2","014",,{text}\n'
        cases.append(member_case(f"StartDate {text!a}", "enterprise_insert.csv", content))
    many = csv_text(BRANCH.columns, []) + '"9.000.006.626",never,"0200.065.765"\n' * 30
    cases.append(member_case("thirty faults in one file", "branch_insert.csv", many))
    return cases


def _orders() -> list[Case]:
    def first(directory: Path) -> Sequence[str | Path]:
        return ("import", update(directory))

    def gap(directory: Path) -> Sequence[str | Path]:
        return ("import", write_extract(directory, ExtractKey(143, "update"), ROWS, DELETES))

    def before(directory: Path, key: ExtractKey) -> Sequence[str | Path]:
        return ("import", write_extract(directory, key, ROWS))

    def another(directory: Path) -> Sequence[str | Path]:
        rows = {**ROWS, "contact": []}
        return ("import", write_extract(directory, ExtractKey(140, "full"), rows))

    def renamed(directory: Path) -> Sequence[str | Path]:
        file = update(directory)
        return ("import", file.rename(directory / "KboOpenData_0150_2025_05_23_Update.zip"))

    def as_full(directory: Path) -> Sequence[str | Path]:
        file = update(directory)
        return ("import", file.rename(directory / "KboOpenData_0141_2025_05_23_Full.zip"))

    return [
        Case("an Update before any Full", first, is_first=True),
        Case("an Update after a gap", gap),
        Case(
            "an Update that is older than the register",
            lambda d: before(d, ExtractKey(139, "update")),
        ),
        Case(
            "a Full that is older than the register", lambda d: before(d, ExtractKey(139, "full"))
        ),
        Case("another ZIP of the published extract", another),
        Case("a ZIP named as another extract", renamed),
        Case("an Update named as a Full", as_full),
    ]
