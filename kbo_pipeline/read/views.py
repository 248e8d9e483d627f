"""The views and macros of a published register, and the statements that make them.

Each query reads the tables in `main` and no other view, so that `KBO_PRIVACY` holds even if views
were made under another setting. The statements name no database, because readers open the published
file under a name of their own: the register must be the default database when they run.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256

from kbo_pipeline.core.sql import indented, listed, literal, with_queries
from kbo_pipeline.core.tables import (
    ACTIVITY,
    ADDRESS,
    ALL_TABLES,
    CODE,
    ENTERPRISE,
    ESTABLISHMENT,
    LEVELS,
    Column,
    Privacy,
)
from kbo_pipeline.read import profile_sql
from kbo_pipeline.read.profile_sql import divisions_of_sections, of_enterprise
from kbo_pipeline.read.state_sql import (
    AT,
    CURRENT,
    address_order,
    changes,
    fill_shown,
    state,
    stopped_enterprises,
)
from kbo_pipeline.read.types import SOURCE

PROFILE = "enterprise_profile"
INVOICING = "invoicing"

PUBLIC_SEARCH = "https://kbopub.economie.fgov.be/kbopub/toonondernemingps.html?ondernemingsnummer="
"""KBO's own page on an enterprise; its number without dots follows."""

UNIT_ADDRESS = "BAET"
"""The type of the address of an establishment unit."""

PARTICIPANT_SCHEME = "0208"
"""Peppol's scheme of Belgian enterprise numbers."""

ACTIVITY_GROUPS = {
    "001": "vat",
    "002": "edrl",
    "003": "general",
    "004": "federal",
    "005": "local_authority",
    "006": "employer",
    "007": "education",
}
"""Who registered an activity, by KBO's code: a word for the name of a column."""

_LANGUAGES = ("NL", "FR", "DE")

_MARKED = '"current".source'

READ_MARK = """
SELECT comment
FROM duckdb_views()
WHERE schema_name = 'current' AND view_name = 'source' AND database_name = current_database()
"""
"""Reads the mark of a register's views; no row if they were made before there were marks."""


def view_queries(privacy: Privacy, *, kept: bool = False) -> dict[str, str]:
    """The query of each view in the schema `current`, by its name.

    Args:
        privacy: who is in them.
        kept: the table of profiles is there; what may be read there is.
    """
    queries = {
        **{table.name: state(table, CURRENT, privacy) for table in ALL_TABLES},
        PROFILE: _profile(profile_sql.profiles(CURRENT, privacy), CURRENT),
        INVOICING: _invoicing(privacy),
        "activity_described": _activity_described(privacy),
        "nace": _nace(),
        "source": source(privacy),
    }
    if kept:
        queries[ENTERPRISE.name] = profile_sql.kept_enterprises(privacy)
        queries[PROFILE] = _profile(profile_sql.kept_profiles(privacy), CURRENT)
    return queries


def macro_queries(privacy: Privacy) -> dict[str, str]:
    """The query of each table macro, by its name; all take an extract number."""
    return {
        **{f"{table.name}_at": state(table, AT, privacy) for table in ALL_TABLES},
        **{f"{table.name}_changes": changes(table, privacy) for table in ALL_TABLES},
        f"{PROFILE}_at": _profile(profile_sql.profiles(AT, privacy), AT),
        "stopped_enterprise": stopped_enterprises(privacy),
    }


def create_views(
    privacy: Privacy, below: Sequence[str] = (), *, kept: bool = False
) -> tuple[str, ...]:
    """Creates or replaces all views and macros; the table of profiles goes, unless it is kept.

    Args:
        privacy: who is in them.
        below: statements that create what they read, where that is no table.
        kept: the table of profiles is there.
    """
    drop = () if kept else (profile_sql.DROP_PROFILES,)
    marked = f"COMMENT ON VIEW {_MARKED} IS {literal(mark(privacy, below, kept=kept))}"
    return (*below, *_statements(privacy, kept=kept), *drop, marked)


def export_queries(privacy: Privacy) -> dict[str, str]:
    """The query of each relation that is exported, sorted by its key, by its name."""
    queries = view_queries(privacy)
    keys = {table.name: listed(table.column_names) for table in ALL_TABLES}
    keys[PROFILE] = ENTERPRISE.key
    return {name: f"{queries[name]}\nORDER BY {key}" for name, key in keys.items()}


def mark(privacy: Privacy, below: Sequence[str] = (), *, kept: bool = False) -> str:
    """Identifies the views that `create_views` makes with these arguments."""
    made = (profile_sql.fill_profiles("true"),) if kept else ()
    statements = (*below, *made, *_statements(privacy, kept=kept))
    return sha256(";".join(statements).encode()).hexdigest()[:16]


def _statements(privacy: Privacy, *, kept: bool) -> Iterator[str]:
    yield from fill_shown(privacy)
    yield 'CREATE SCHEMA IF NOT EXISTS "current"'
    for name, query in view_queries(privacy, kept=kept).items():
        yield f'CREATE OR REPLACE VIEW "current".{name} AS\n{query}'
    for name, query in macro_queries(privacy).items():
        yield f"CREATE OR REPLACE MACRO {name}(extract_number) AS TABLE\n{query}"


def _profile(profiles: str, holds: str) -> str:
    """One row for each enterprise, with columns of the other tables.

    Args:
        profiles: a query for what is costly of it, of `profile_sql`.
        holds: which codes are meant, as in `state`.
    """
    key = ENTERPRISE.key
    columns, joins = [], []
    for column in ENTERPRISE.columns[1:]:
        columns.append(f"e.{column.name}")
        if column.code_category:
            columns += _descriptions(column, _LANGUAGES)
            joins.append(_join_codes(column, "e", holds))
    digits = f"replace(e.{key}, '.', '')"
    query = f"""SELECT e.{key}, 'BE' || {digits} AS vat_number,
    e.primary_name, e.primary_name_language,
    e.primary_name_nl, e.primary_name_fr, e.primary_name_de,
    e.abbreviation, e.commercial_name,
    {listed(columns)},
    {listed(f"e.{name}" for name in profile_sql.SEAT_COLUMNS)},
    e.main_nace_version, e.main_nace_code,
    main_nace.nl AS main_nace_code_nl, main_nace.fr AS main_nace_code_fr,
    e.main_section, e.main_classification, e.main_activity_group,
    e.establishments,
    '{PUBLIC_SEARCH}'
        || {digits} AS public_search_url
FROM profiles e
LEFT JOIN codes main_nace
    ON main_nace.code = e.main_nace_code
    AND main_nace.category = 'Nace' || e.main_nace_version
{"".join(joins)}"""
    return with_queries({"profiles": profiles, "codes": _codes(holds)}, query.rstrip())


def _invoicing(privacy: Privacy) -> str:
    """One row for each current enterprise, with what an invoice to it needs."""
    key, number = ENTERPRISE.key, ESTABLISHMENT.key
    forms = [c for c in ENTERPRISE.columns if c.code_category == "JuridicalForm"]
    columns = [text for c in forms for text in (f"e.{c.name}", *_descriptions(c, _LANGUAGES))]
    flags = {code: f"has_{word}_activities" for code, word in ACTIVITY_GROUPS.items()}
    address = "coalesce(seat.address, unit.oldest.address)"
    queries = {
        "enterprises": state(ENTERPRISE, CURRENT, privacy),
        "units": state(ESTABLISHMENT, CURRENT, privacy),
        "activities": f"""SELECT s.{ACTIVITY.key} AS {key}, s.activity_group
FROM main.{ACTIVITY.name} s
WHERE {CURRENT.format("s")} AND {of_enterprise("s", ACTIVITY.key)}
UNION ALL
SELECT u.{key}, s.activity_group
FROM units u
JOIN main.{ACTIVITY.name} s ON s.{ACTIVITY.key} = u.{number}
WHERE {CURRENT.format("s")}""",
        "activity_groups": f"""SELECT {key},
    {listed(f"bool_or(activity_group = '{code}') AS {name}" for code, name in flags.items())}
FROM activities
GROUP BY {key}""",
        "seats": f"""SELECT s.{ADDRESS.key}, min({address_order("s")}) AS address
FROM main.{ADDRESS.name} s
WHERE s.type_of_address = '{profile_sql.SEAT}' AND {_is_valid("s")}
GROUP BY s.{ADDRESS.key}""",
        "oldest_units": f"""SELECT u.{key}, min(struct_pack(
        has_no_start_date := u.start_date IS NULL, start_date := u.start_date,
        {number} := u.{number},
        address := {indented(address_order("s"))})) AS oldest
FROM units u
JOIN main.{ADDRESS.name} s ON s.{ADDRESS.key} = u.{number}
WHERE s.type_of_address = '{UNIT_ADDRESS}' AND {_is_valid("s")}
GROUP BY u.{key}""",
        "codes": _codes(CURRENT),
    }
    query = f"""SELECT e.{key},
    '{PARTICIPANT_SCHEME}:' || replace(e.{key}, '.', '') AS participant_id,
    e.primary_name, e.primary_name_language,
    {listed(columns)},
    {listed(f"coalesce(g.{name}, false) AS {name}" for name in flags.values())},
    coalesce(seat.{ADDRESS.key}, unit.oldest.{number}) AS address_of,
    {listed(f"{address}.{name} AS {name}" for name in ADDRESS.column_names[2:-1])}
FROM enterprises e
LEFT JOIN activity_groups g ON g.{key} = e.{key}
LEFT JOIN seats seat ON seat.{ADDRESS.key} = e.{key}
LEFT JOIN oldest_units unit ON unit.{key} = e.{key}
{"".join(_join_codes(column, "e", CURRENT) for column in forms)}"""
    return with_queries(queries, query.rstrip())


def _is_valid(alias: str) -> str:
    """Whether a current address has not been struck off."""
    return f"{CURRENT.format(alias)} AND {alias}.date_striking_off IS NULL"


def _activity_described(privacy: Privacy) -> str:
    """Each current activity, with the descriptions of its codes."""
    columns, joins = [], []
    for column in ACTIVITY.columns:
        columns.append(f"s.{column.name}")
        if column.code_category:
            columns += _descriptions(column, _LANGUAGES[:2])
            joins.append(_join_codes(column, "s", CURRENT))
    for name in ("division", "section"):
        columns += [f"d.{name}", f"{name}_code.nl AS {name}_nl", f"{name}_code.fr AS {name}_fr"]
    queries = {
        "activities": state(ACTIVITY, CURRENT, privacy),
        "codes": _codes(CURRENT),
        "divisions": divisions_of_sections(),
    }
    query = f"""SELECT {listed(columns)}
FROM activities s
{"".join(joins)}LEFT JOIN divisions d
    ON d.nace_version = s.nace_version AND d.division = s.nace_code[:2]
LEFT JOIN codes division_code
    ON division_code.category = 'Nace' || s.nace_version AND division_code.code = d.division
LEFT JOIN codes section_code
    ON section_code.category = 'Nace' || s.nace_version AND section_code.code = d.section"""
    return with_queries(queries, query)


def _nace() -> str:
    """The NACE codes of all versions in the current code list, as a tree."""
    names = (f"WHEN {length} THEN '{name}'" for length, name in LEVELS.items())
    query = f"""SELECT c.category[5:] AS nace_version, c.code AS nace_code,
    CASE length(c.code) {listed(names, " ", 8)} END AS level,
    CASE length(c.code) WHEN 1 THEN NULL WHEN 2 THEN d.section WHEN 7 THEN c.code[:5]
        ELSE c.code[:-2] END AS parent_code,
    CASE WHEN length(c.code) > 1 THEN c.code[:2] END AS division,
    CASE length(c.code) WHEN 1 THEN c.code ELSE d.section END AS section,
    c.nl AS description_nl, c.fr AS description_fr
FROM codes c
LEFT JOIN divisions d ON d.nace_version = c.category[5:] AND d.division = c.code[:2]
WHERE regexp_full_match(c.category, 'Nace[0-9]{{4}}')"""
    return with_queries({"codes": _codes(CURRENT), "divisions": divisions_of_sections()}, query)


def source(privacy: Privacy) -> str:
    """The newest published extract, its source line, who is left out, and what is proven."""
    return f"""SELECT j.id AS extract, j.extract_number, j.snapshot_date,
    '{SOURCE}' || j.snapshot_date AS source, '{privacy}' AS privacy,
    p.proven_extract_number, p.proven_at
FROM main.import_jobs j
CROSS JOIN (
    SELECT max(extract_number) AS proven_extract_number,
        max_by(verified_at, extract_number) AS proven_at
    FROM main.proof
    WHERE is_equal
) p
WHERE j.status = 'completed'
ORDER BY j.extract_number DESC, j.completed_at DESC
LIMIT 1"""


def _descriptions(column: Column, languages: tuple[str, ...]) -> list[str]:
    texts = (language.lower() for language in languages)
    return [f"{column.name}_code.{text} AS {column.name}_{text}" for text in texts]


def _join_codes(column: Column, alias: str, holds: str) -> str:
    """Joins the descriptions of a column's codes.

    Grouped by what is compared, so that DuckDB leaves out a join of which nothing is asked for.
    """
    category, code = column.code_category or "", f"{column.name}_code"
    compared = f"{code}.code = {alias}.{column.name}"
    if "{" in category:
        name = f"'{category}'".replace("{", f"' || {alias}.").replace("}", " || '")
        return f"LEFT JOIN codes {code}\n    ON {code}.category = {name}\n    AND {compared}\n"
    return f"""LEFT JOIN (
    SELECT c.code, {_texts()}
    FROM main.{CODE.name} c
    WHERE {holds.format("c")} AND c.category = '{category}'
    GROUP BY c.code
) {code} ON {compared}
"""


def _codes(holds: str) -> str:
    """The descriptions of each code, its languages side by side."""
    return f"""SELECT c.category, c.code, {_texts()}
FROM main.{CODE.name} c
WHERE {holds.format("c")}
GROUP BY c.category, c.code"""


def _texts() -> str:
    """The descriptions in each language of the grouped codes `c`."""
    return listed(
        (
            f"min(c.description) FILTER (c.language = '{language}') AS {language.lower()}"
            for language in _LANGUAGES
        ),
        by=8,
    )
