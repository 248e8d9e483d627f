"""Finds current enterprises by name, place and activity with SQL alone; says what is known of them.

It takes what is written as it is. `search.py` asks the search index where there is one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.core.sql import all_of, indented, union_all, with_queries
from kbo_pipeline.core.tables import ACTIVITY, ADDRESS, CODE, DENOMINATION, ENTERPRISE, UNITS, Table
from kbo_pipeline.read.profile_sql import SEAT
from kbo_pipeline.read.state_sql import (
    address_order,
    bind,
    is_enterprise_number,
    main_names,
    placeholders,
    rows_for,
)
from kbo_pipeline.read.types import Match, PublishedExtract

_MOST = 2**31


@dataclass(frozen=True, slots=True)
class Criteria:
    """What an enterprise must have to be found, as `PublishedRegister.find` takes it."""

    text: str
    zipcode: str | None
    nace: str | None
    nace_version: str | None
    status: str | None
    limit: int

    def __post_init__(self) -> None:
        """Refuses what cannot be looked for with a `NotFoundError`."""
        for value in (self.text, self.zipcode, self.nace, self.nace_version, self.status):
            try:
                (value or "").encode()
            except UnicodeEncodeError:
                raise NotFoundError(
                    f"{str(value)[:40]!r}: a character that UTF-8 does not have; write it in a"
                    " UTF-8 locale (LC_ALL=C.UTF-8)"
                ) from None
        if self.limit > _MOST:
            raise NotFoundError(f"limit {self.limit}: ask for {_MOST:,} or less")


def find(database: Database, criteria: Criteria, newest: PublishedExtract) -> list[Match]:
    """Finds the enterprises that meet all criteria, the best matches first.

    Raises:
        NotFoundError: the criteria say nothing to look for.
    """
    ((plain,),) = database.execute(_PLAIN, text=criteria.text).fetchall()
    words = plain.split()
    if not (words or criteria.zipcode or criteria.nace):
        raise NotFoundError("nothing to look for: name a text, a zipcode or a NACE code")
    if criteria.limit < 1:
        raise NotFoundError(f"limit {criteria.limit}: ask for 1 or more")
    values = _values(database, criteria, newest) | {"limit": criteria.limit}
    if words:
        values |= {"phrase": " ".join(words), **bind("word", words)}
    hits = database.execute(_find(len(words), values.keys()), **values).fetchall()
    numbers = [number for number, *_ in hits]
    described = {row[0]: row for row in rows_for(database, _described, "number", numbers)}
    return [
        Match(*(*described[number], matched_number, name, _SCORES[rank], name, True))
        for number, matched_number, name, rank in hits
    ]


def with_activity(
    database: Database, criteria: Criteria, numbers: Sequence[str], newest: PublishedExtract
) -> set[str]:
    """Those of some enterprises that have the activity of the criteria, or a unit that has it."""
    values = _values(database, criteria, newest)
    bound = {key: values[key] for key in ("nace", "nace_version")}
    rows = rows_for(database, _with_activity, "number", numbers, **bound)
    return {number for (number,) in rows}


def check_known(database: Database, criteria: Criteria, newest: PublishedExtract) -> None:
    """Makes sure that the register has each value of some criteria, whatever else they ask for.

    Raises:
        NotFoundError: it lacks one; names the value.
    """
    values = _values(database, criteria, newest)
    for name, (statement, reason) in _KNOWN.items():
        if name not in values:
            continue
        bound = {key: value for key, value in values.items() if f"${key}" in statement}
        if database.row(statement, **bound) is None:
            version = values.get("nace_version")
            reason = reason.format(version=f" {version}" if version else "")
            raise NotFoundError(f"{str(values[name])[:40]!r}: {reason} in the register")


def _values(database: Database, criteria: Criteria, newest: PublishedExtract) -> dict[str, Any]:
    """What is bound for the criteria but the text."""
    values: dict[str, Any] = {}
    if criteria.zipcode:
        values["zipcode"] = criteria.zipcode
    if criteria.nace:
        ((newest_version,),) = database.execute(_NEWEST_NACE, at=newest.number).fetchall()
        values["nace"] = criteria.nace.replace(".", "")
        values["nace_version"] = criteria.nace_version or newest_version
    if criteria.status:
        values["status"] = criteria.status
    return values


_SCORES = (1.0, 0.9, 0.8, 0.7, 0.6)
"""The score of a rank: the text is the name, begins it, begins a word, is in it, its words are."""

_PLAIN = "SELECT strip_accents(lower($text))"
"""A text as names are compared."""

_NEWEST_NACE = f"""
SELECT max(category[5:])
FROM {CODE.name}_at($at)
WHERE regexp_full_match(category, 'Nace[0-9]{{4}}')
"""
"""The newest version of NACE in the code list."""

_CURRENT_UNITS = union_all(
    f'SELECT {table.key} AS entity_number, {ENTERPRISE.key} FROM "current".{table.name}'
    for table in UNITS
)


def _owner(number: str) -> str:
    """The enterprise of a number, which may be that of a row of `units`, joined as `u`."""
    return f"""CASE WHEN {is_enterprise_number(number)} THEN {number}
        ELSE u.{ENTERPRISE.key} END AS {ENTERPRISE.key}"""


def _enterprises(table: Table, where: str) -> str:
    """The enterprises that have such a row, they themselves or one of their units."""
    return f"""SELECT {_owner("r." + table.key)}
FROM "current".{table.name} r
LEFT JOIN units u ON u.entity_number = r.{table.key}
WHERE {where}"""


def _of_names(words: int) -> str:
    """The enterprises that have all words in a name of theirs or of one of their units."""
    contained = all_of(f"contains(plain, $word{place})" for place in range(words))
    return rf"""SELECT n.entity_number, n.denomination, n.plain,
    {_owner("n.entity_number")},
    CASE WHEN plain = $phrase THEN 0
        WHEN starts_with(plain, $phrase) THEN 1
        WHEN contains(' ' || plain, ' ' || $phrase)
            OR contains(regexp_replace(plain, '[^\pL\pN]+', ' ', 'g'), ' ' || $phrase) THEN 2
        WHEN contains(plain, $phrase) THEN 3
        ELSE 4 END AS rank
FROM (
    SELECT {DENOMINATION.key} AS entity_number, denomination,
        trim(strip_accents(lower(denomination))) AS plain
    FROM "current".{DENOMINATION.name}
    WHERE {contained}
) n
LEFT JOIN units u ON u.entity_number = n.entity_number"""


def _find(words: int, values: Collection[str]) -> str:
    """Finds enterprises: number, the number with the name that matched, that name, its rank.

    Args:
        words: the number of words `$word0`, ... that must be in the name; together they are
            `$phrase`.
        values: the names of the other values that are bound: `zipcode`, `nace` with
            `nace_version`, `status`; and always `limit`.
    """
    key = ENTERPRISE.key
    status = " AND status = $status" if "status" in values else ""
    conditions = [f"SELECT {key} FROM main.{ENTERPRISE.name} WHERE _is_current{status}"]
    coded = "r.nace_version = $nace_version AND starts_with(r.nace_code, $nace)"
    if "zipcode" in values:
        valid = "r.zipcode = $zipcode AND r.date_striking_off IS NULL"
        conditions.append(_enterprises(ADDRESS, valid))
    if "nace" in values:
        conditions.append(_enterprises(ACTIVITY, coded))
    if words:
        candidates = _of_names(words)
    else:
        where = (ADDRESS, "r.zipcode = $zipcode") if "zipcode" in values else (ACTIVITY, coded)
        candidates = f"""SELECT DISTINCT {key}, {key} AS entity_number,
    NULL AS denomination, NULL AS plain, 0 AS rank
FROM (
    {indented(_enterprises(*where))}
)"""
    among = "\n    AND ".join(
        f"{key} IN (\n        {indented(query, 8)}\n    )" for query in conditions
    )
    best = f"""SELECT DISTINCT ON ({key}) *
FROM candidates
WHERE {among}
ORDER BY {key}, rank, length(plain), entity_number, plain, denomination"""
    return with_queries(
        {"units": _CURRENT_UNITS, "candidates": candidates, "best": best},
        f"""SELECT {key}, entity_number, denomination, rank
FROM best
ORDER BY rank, length(plain), plain, {key}
LIMIT $limit""",
        materialized=None,
    )


def _with_activity(count: int) -> str:
    """Those of the enterprises `$number0`, ... with an activity whose code begins with `$nace`."""
    coded = "r.nace_version = $nace_version AND starts_with(r.nace_code, $nace)"
    return with_queries(
        {"units": _CURRENT_UNITS, "enterprises": _enterprises(ACTIVITY, coded)},
        f"""SELECT DISTINCT {ENTERPRISE.key}
FROM enterprises
WHERE {ENTERPRISE.key} IN ({placeholders("number", count)})""",
        materialized=None,
    )


_KNOWN = {
    "zipcode": (
        f'SELECT 1 FROM "current".{ADDRESS.name} WHERE zipcode = $zipcode LIMIT 1',
        "no address has this zipcode",
    ),
    "nace": (
        f"""SELECT 1
FROM "current".{CODE.name}
WHERE category = concat('Nace', $nace_version) AND starts_with(code, $nace)
UNION ALL
SELECT 1
FROM "current".{ACTIVITY.name}
WHERE nace_version = $nace_version AND starts_with(nace_code, $nace)
LIMIT 1""",
        "no NACE{version} code begins so",
    ),
    "status": (
        f"""SELECT 1
FROM "current".{CODE.name}
WHERE category = 'Status' AND code = $status
UNION ALL
SELECT 1
FROM "current".{ENTERPRISE.name}
WHERE status = $status
LIMIT 1""",
        "there is no such status",
    ),
}
"""A query that has a row if the register knows a value, and the reason to give if it does not."""


def _described(count: int) -> str:
    """Name, status and seat of the current enterprises `$number0`, ..., which may be shown."""
    key, numbers = ENTERPRISE.key, placeholders("number", count)
    names = main_names(f"""(
    SELECT *
    FROM "current".{DENOMINATION.name}
    WHERE {DENOMINATION.key} IN ({numbers})
)""")
    seats = f"""SELECT s.{ADDRESS.key}, min({address_order("s")}) AS seat
FROM "current".{ADDRESS.name} s
WHERE s.type_of_address = '{SEAT}' AND s.{ADDRESS.key} IN ({numbers})
GROUP BY s.{ADDRESS.key}"""
    query = f"""SELECT e.{key}, coalesce(n.main_name, e.{key}), e.status,
    a.seat.zipcode, coalesce(a.seat.municipality_nl, a.seat.municipality_fr),
    a.seat.date_striking_off
FROM main.{ENTERPRISE.name} e
LEFT JOIN names n ON n.{DENOMINATION.key} = e.{key}
LEFT JOIN seats a ON a.{ADDRESS.key} = e.{key}
WHERE e._is_current AND e.{key} IN ({numbers})"""
    return with_queries({"names": names, "seats": seats}, query)
