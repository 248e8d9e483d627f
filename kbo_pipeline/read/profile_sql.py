"""SQL for profiles: what is costly of `enterprise_profile`, by a query or kept in a table.

Names, seat and main activity are chosen among all names, addresses and activities, which takes
seconds for all enterprises. So the file that readers open has the choices of the newest extract in
the table `PROFILES`, and views read them there. It holds everybody, whatever `KBO_PRIVACY` is.
"""

from collections.abc import Iterable, Iterator

from kbo_pipeline.core.sql import indented, listed, union_all, with_queries
from kbo_pipeline.core.tables import (
    ACTIVITY,
    ADDRESS,
    DENOMINATION,
    ENTERPRISE,
    ESTABLISHMENT,
    ESTABLISHMENT_NUMBER,
    Privacy,
    divisions,
)
from kbo_pipeline.read.state_sql import (
    CURRENT,
    PRIMARY_NAME_COLUMNS,
    address_order,
    chosen_name,
    is_shown,
    state,
)

PROFILES = "current_profile"
"""The table of what was chosen for each current enterprise."""

SEAT = "REGO"
"""The type of the address of an enterprise's seat."""

CLASSIFICATIONS = ("MAIN", "SECO", "ANCI")
"""Of these, the first one that an enterprise has decides its main activity."""

SEAT_COLUMNS = tuple(f"seat_{name}" for name in ADDRESS.column_names[2:])

_OF_ENTERPRISE = (*ENTERPRISE.column_names, *PRIMARY_NAME_COLUMNS)
_CHOSEN = (
    *("abbreviation", "commercial_name"),
    *SEAT_COLUMNS,
    *("main_nace_version", "main_nace_code", "main_section"),
    *("main_classification", "main_activity_group"),
)

_AT_ONCE = 250_000  # enterprises

DROP_PROFILES = f"DROP TABLE IF EXISTS {PROFILES}"


def profiles(holds: str, privacy: Privacy) -> str:
    """One row for each enterprise: its own columns, and what is chosen; `holds` as in `state`."""
    key = ENTERPRISE.key
    queries = {
        "enterprises": state(ENTERPRISE, holds, privacy),
        "other_names": _other_names(holds),
        "several_seats": _several_seats(holds),
        "seats": _seats(holds),
        "main_activities": _main_activities(holds),
        "unit_counts": _unit_counts(holds, privacy),
        "divisions": divisions_of_sections(),
    }
    seat = (f"a.{name} AS seat_{name}" for name in ADDRESS.column_names[2:])
    query = f"""SELECT {listed(f"e.{name}" for name in _OF_ENTERPRISE)},
    n.abbreviation, n.commercial_name,
    {listed(seat)},
    m.main.nace_version AS main_nace_version, m.main.nace_code AS main_nace_code,
    d.section AS main_section, m.main.classification AS main_classification,
    m.main.activity_group AS main_activity_group,
    coalesce(u.establishments, 0) AS establishments
FROM enterprises e
LEFT JOIN other_names n ON n.{DENOMINATION.key} = e.{key}
LEFT JOIN seats a ON a.{ADDRESS.key} = e.{key}
LEFT JOIN main_activities m ON m.{ACTIVITY.key} = e.{key}
LEFT JOIN divisions d
    ON d.nace_version = m.main.nace_version AND d.division = m.main.nace_code[:2]
LEFT JOIN unit_counts u ON u.{key} = e.{key}"""
    return with_queries(queries, query)


def kept_profiles(privacy: Privacy) -> str:
    """The same from `PROFILES`; units are counted where some may not be shown."""
    key = ENTERPRISE.key
    columns = listed(f"s.{name}" for name in (*_OF_ENTERPRISE, *_CHOSEN))
    if privacy == "full":
        return f"SELECT {columns}, s.establishments\nFROM main.{PROFILES} s"
    query = f"""SELECT {columns},
    coalesce(u.establishments, 0) AS establishments
FROM main.{PROFILES} s
LEFT JOIN unit_counts u ON u.{key} = s.{key}
WHERE {is_shown(ENTERPRISE, "true", privacy)}"""
    return with_queries({"unit_counts": _unit_counts(CURRENT, privacy)}, query)


def kept_enterprises(privacy: Privacy) -> str:
    """The current enterprises with their primary names, from `PROFILES`."""
    return f"""SELECT {listed(f"s.{name}" for name in _OF_ENTERPRISE)}
FROM main.{PROFILES} s
WHERE {is_shown(ENTERPRISE, "true", privacy)}"""


def create_profiles() -> str:
    """Makes `PROFILES`, without a row."""
    return f"""CREATE OR REPLACE TABLE {PROFILES} AS
{profiles(CURRENT, "full")}
WITH NO DATA"""


COUNT_ENTERPRISES = f"SELECT count(*) FROM {ENTERPRISE.name} WHERE _is_current"

COUNT_BY_PREFIX = f"""
SELECT left({ENTERPRISE.key}, 5) AS prefix, count(*)
FROM {ENTERPRISE.name}
WHERE _is_current
GROUP BY ALL
ORDER BY ALL
"""
"""Counts current enterprises whose numbers begin alike, in order."""


def ranges(counts: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Conditions on a number that cut the enterprises into some hundred thousand each, in order.

    Choosing for all of them at once takes more memory than there may be.

    Args:
        counts: what `COUNT_BY_PREFIX` gives.
    """
    first, rows = "", 0
    for prefix, count in counts:
        if rows and rows + count > _AT_ONCE:
            yield f"{{0}}.{{1}} >= '{first}' AND {{0}}.{{1}} < '{prefix}'"
            first, rows = prefix, 0
        rows += count
    yield f"{{0}}.{{1}} >= '{first}'"


def fill_profiles(condition: str) -> str:
    """Adds the rows of enterprises of which a condition holds, in the order of their numbers.

    Args:
        condition: with `{0}` and `{1}`, as in `CURRENT`.
    """
    holds = f"{CURRENT}\n    AND {condition}"
    return f"""INSERT INTO {PROFILES} BY NAME
{profiles(holds, "full")}
ORDER BY {ENTERPRISE.key}"""


def renew_profiles(touched: str) -> Iterator[str]:
    """Makes the rows of some enterprises in `PROFILES` anew.

    Args:
        touched: a table with their numbers as `number`.
    """
    numbers = f"SELECT number FROM {touched}"
    yield f"DELETE FROM {PROFILES} WHERE {ENTERPRISE.key} IN ({numbers})"
    yield fill_profiles(f"{{0}}.{{1}} IN ({numbers})")


def _unit_counts(holds: str, privacy: Privacy) -> str:
    key = ENTERPRISE.key
    return f"""SELECT unit.{key}, count(*) AS establishments
FROM (
    {indented(state(ESTABLISHMENT, holds, privacy))}
) unit
GROUP BY unit.{key}"""


def _other_names(holds: str) -> str:
    key = DENOMINATION.key
    return f"""SELECT d.{key},
    {chosen_name("002")} AS abbreviation,
    {chosen_name("003")} AS commercial_name
FROM main.{DENOMINATION.name} d
WHERE d.type_of_denomination IN ('002', '003')
    AND {holds.format("d", key)}
    AND {of_enterprise("d", key)}
GROUP BY d.{key}"""


def _several_seats(holds: str) -> str:
    """The few enterprises with more than one address of their seat, most of them struck off."""
    return f"""SELECT s.{ADDRESS.key}
FROM main.{ADDRESS.name} s
WHERE s.type_of_address = '{SEAT}' AND {holds.format("s", ADDRESS.key)}
GROUP BY s.{ADDRESS.key}
HAVING count(*) > 1"""


def _seats(holds: str) -> str:
    """One address for each enterprise; only of `several_seats`, one has to be chosen.

    Choosing takes time and memory for each address, many times what reading it takes. A join, so
    that DuckDB reads a single enterprise on both sides where only that is asked for.
    """
    key, names = ADDRESS.key, ADDRESS.column_names[2:]
    joined = f"several_seats several ON several.{key} = s.{key}"
    is_seat = f"s.type_of_address = '{SEAT}' AND {holds.format('s', key)}"
    return union_all(
        (
            f"""SELECT s.{key}, {listed((f"s.{name}" for name in names), by=8)}
FROM main.{ADDRESS.name} s
LEFT JOIN {joined}
WHERE {is_seat}
    AND several.{key} IS NULL""",
            f"""SELECT chosen.{key}, {listed((f"chosen.seat.{name}" for name in names), by=8)}
FROM (
    SELECT s.{key}, min({indented(address_order("s"))}) AS seat
    FROM main.{ADDRESS.name} s
    JOIN {joined}
    WHERE {is_seat}
    GROUP BY s.{key}
) chosen""",
        )
    )


def _main_activities(holds: str) -> str:
    """The first activity in the order of the documented rule."""
    rank = " ".join(
        f"WHEN '{classification}' THEN {place}"
        for place, classification in enumerate(CLASSIFICATIONS)
    )
    return f"""SELECT s.{ACTIVITY.key}, min(struct_pack(
        newest := -try_cast(s.nace_version AS INTEGER),
        rank := CASE s.classification {rank} ELSE {len(CLASSIFICATIONS)} END,
        activity_group := s.activity_group, nace_code := s.nace_code,
        nace_version := s.nace_version, classification := s.classification)) AS main
FROM main.{ACTIVITY.name} s
WHERE {holds.format("s", ACTIVITY.key)}
    AND {of_enterprise("s", ACTIVITY.key)}
GROUP BY s.{ACTIVITY.key}"""


def of_enterprise(alias: str, column: str) -> str:
    """Leaves out establishment units and branches by a comparison that zone maps can use."""
    return f"{alias}.{column} < '{ESTABLISHMENT_NUMBER[0]}'"


def divisions_of_sections() -> str:
    """The section of each division of each version."""
    values = listed(f"('{v}', '{division}', '{s}')" for v, division, s in divisions())
    return f"""SELECT *
FROM (VALUES
    {values}
) t(nace_version, division, section)"""
