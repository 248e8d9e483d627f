"""SQL that readers use: views and macros, and what is counted for them."""

from kbo_pipeline.tables import ALL_TABLES, DENOMINATION, ENTERPRISE, Table

PRIMARY_NAME_LANGUAGES = (("2", "nl"), ("1", "fr"), ("0", "unknown"), ("3", "de"), ("4", "en"))
"""KBO's language codes in the order in which a primary name is chosen."""

_NAME_COLUMNS = (
    "primary_name",
    "primary_name_language",
    "primary_name_nl",
    "primary_name_fr",
    "primary_name_de",
)


def _holds_at(alias: str) -> str:
    return (
        f"{alias}._extract_number <= extract_number AND"
        f" ({alias}._deleted_at_extract IS NULL OR {alias}._deleted_at_extract > extract_number)"
    )


def _state(table: Table, holds: str, names_hold: str) -> str:
    """The rows of a table for which a condition holds; of entities, with their primary names."""
    columns = ", ".join(f"s.{name}" for name in table.column_names)
    if table is not ENTERPRISE:
        return f"SELECT {columns} FROM main.{table.name} s WHERE {holds}"
    return (
        f"SELECT {columns}, {', '.join(_primary_name(table.key))}"
        f" FROM main.{table.name} s LEFT JOIN ({_names(names_hold)}) n"
        f" ON n.{DENOMINATION.key} = s.{table.key} WHERE {holds}"
    )


def _names(holds: str) -> str:
    names = ", ".join(
        f"min(d.denomination) FILTER (d.language = '{code}') AS name_{name}"
        for code, name in PRIMARY_NAME_LANGUAGES
    )
    return (
        f"SELECT d.{DENOMINATION.key}, {names} FROM main.{DENOMINATION.name} d"
        f" WHERE d.type_of_denomination = '001' AND {holds} GROUP BY d.{DENOMINATION.key}"
    )


def _primary_name(key: str) -> tuple[str, ...]:
    """The rule: the first language that has a name of type 001; else the entity's number."""
    in_order = [f"n.name_{name}" for _, name in PRIMARY_NAME_LANGUAGES]
    languages = " ".join(
        f"WHEN n.name_{name} IS NOT NULL THEN '{code}'" for code, name in PRIMARY_NAME_LANGUAGES
    )
    expressions = (
        f"coalesce({', '.join(in_order)}, s.{key})",
        f"CASE {languages} END",
        "n.name_nl",
        "n.name_fr",
        "n.name_de",
    )
    return tuple(f"{e} AS {c}" for e, c in zip(expressions, _NAME_COLUMNS, strict=True))


def views(table: Table) -> tuple[str, ...]:
    """Creates `current.<table>`, `<table>_at(n)` and `<table>_changes(n)` in the register.

    The register must be the default database then: the texts name no database, because readers
    open the published file under a name of their own.
    """
    columns = ", ".join(table.column_names)
    return (
        f'CREATE OR REPLACE VIEW "current".{table.name} AS '
        + _state(table, "s._is_current", "d._is_current"),
        f"CREATE OR REPLACE MACRO {table.name}_at(extract_number) AS TABLE "
        + _state(table, _holds_at("s"), _holds_at("d")),
        f"CREATE OR REPLACE MACRO {table.name}_changes(extract_number) AS TABLE"
        f" SELECT 'removed' AS _change, {columns} FROM main.{table.name} s"
        " WHERE s._deleted_at_extract = extract_number"
        f" UNION ALL SELECT 'added' AS _change, {columns} FROM main.{table.name} s"
        " WHERE s._extract_number = extract_number",
    )


COUNT_NAMES_RESOLVED = f"""
SELECT count(*) FROM register.main.{ENTERPRISE.name} e
WHERE e._is_current AND (e._extract_number = $number OR e.{ENTERPRISE.key} IN (
    SELECT {DENOMINATION.key} FROM register.main.{DENOMINATION.name}
    WHERE type_of_denomination = '001' AND $number IN (_extract_number, _deleted_at_extract)))
"""
"""Counts the current entities whose primary name was resolved anew for an extract."""

CONTENT_OF_TABLES = " UNION ALL ".join(
    f"SELECT '{t.name}' AS table_name, count(*) AS row_count, sum(hash(t))::VARCHAR AS row_hash"
    f" FROM main.{t.name} t"
    for t in ALL_TABLES
)
"""Counts and hashes all row versions of each table, whatever their order in the file."""
