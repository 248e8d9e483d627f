"""SQL of the search index: what is in its documents, and what extracts have touched."""

from kbo_pipeline.core.sql import indented, union_all
from kbo_pipeline.core.tables import ADDRESS, DENOMINATION, ENTERPRISE, UNITS
from kbo_pipeline.read.profile_sql import SEAT
from kbo_pipeline.read.state_sql import address_order

_KEY = ENTERPRISE.key

NEWEST = """
SELECT id, completed_at
FROM import_jobs
WHERE status = 'completed'
ORDER BY extract_number DESC, completed_at DESC
LIMIT 1
"""
"""The newest published extract, and when it was published."""

PUBLISHED = """
SELECT extract_number, completed_at
FROM import_jobs
WHERE status = 'completed' AND id = $key
"""
"""The number of a published extract, and when it was published."""

_UNITS = 5  # of an enterprise that are in a document together

_HAS_CHANGED = "(_extract_number > $since OR _deleted_at_extract > $since)"

_OWNERS_EVER = union_all(
    f"SELECT DISTINCT {table.key} AS entity_number, {_KEY}\n    FROM main.{table.name}"
    for table in UNITS
)


def _touched_by(table: str, key: str) -> str:
    """The enterprises, today's and former ones, of entities whose rows of a table have changed."""
    return f"""SELECT coalesce(o.{_KEY}, r.{key})
FROM main.{table} r
LEFT JOIN owners o ON o.entity_number = r.{key}
WHERE {_HAS_CHANGED}"""


FILL_TOUCHED = f"""
CREATE OR REPLACE TEMP TABLE touched AS
WITH owners AS (
    {_OWNERS_EVER}
),
changed(number) AS (
{
    union_all(
        (
            f"SELECT {_KEY} FROM main.{ENTERPRISE.name} WHERE {_HAS_CHANGED}",
            *(f"SELECT {_KEY} FROM main.{table.name} WHERE {_HAS_CHANGED}" for table in UNITS),
            *(_touched_by(table.name, table.key) for table in (DENOMINATION, ADDRESS)),
        )
    )
}
)
SELECT DISTINCT number
FROM changed
"""
"""Fills `touched` with the enterprises whose documents may have changed since an extract."""

TOUCHED = "SELECT number FROM touched ORDER BY number"

COUNT_TOUCHED = "SELECT count(*) FROM touched"

COUNT_ENTERPRISES = f"SELECT count(*) FROM main.{ENTERPRISE.name} WHERE _is_current"

COUNT_SUBJECTS = "SELECT count(*) FROM subject"

_CURRENT_UNITS = union_all(
    f'SELECT {table.key} AS entity_number, {_KEY}\nFROM "current".{table.name}' for table in UNITS
)


def _text(language: str) -> str:
    return f"""CASE WHEN street_{language} IS NOT NULL THEN concat_ws(
        ', ', concat_ws(' ', street_{language}, house_number, box),
        concat_ws(' ', zipcode, municipality_{language})
    ) END"""


def prepare(*, is_update: bool) -> tuple[str, ...]:
    """Makes the tables that the query for documents reads.

    Args:
        is_update: of the enterprises in `touched` alone.
    """
    where = f"\nWHERE {_KEY} IN (SELECT number FROM touched)" if is_update else ""
    return (
        f"""
CREATE OR REPLACE TEMP TABLE subject AS
SELECT {_KEY}, primary_name, status, coalesce(juridical_form_cac, juridical_form) AS form
FROM "current".{ENTERPRISE.name}{where}
""",
        f"""
CREATE OR REPLACE TEMP TABLE owner AS
SELECT unnest(numbers) AS entity_number, {_KEY},
    (generate_subscripts(numbers, 1) - 1) // {_UNITS} AS part
FROM (
    SELECT {_KEY}, list_sort(list(entity_number)) AS numbers
    FROM (
        {indented(_CURRENT_UNITS, by=8)}
    ){indented(where)}
    GROUP BY {_KEY}
)
UNION ALL
SELECT {_KEY}, {_KEY}, 0
FROM subject
""",
        f"""
CREATE OR REPLACE TEMP TABLE valid_address AS
SELECT o.{_KEY}, o.part, a.{ADDRESS.key} AS entity_number, zipcode,
    concat_ws(' ', zipcode, municipality_nl, municipality_fr) AS place,
    {_text("nl")} AS text_nl,
    {_text("fr")} AS text_fr
FROM "current".{ADDRESS.name} a
JOIN owner o ON o.entity_number = a.{ADDRESS.key}
WHERE a.date_striking_off IS NULL
""",
        f"""
CREATE OR REPLACE TEMP TABLE place AS
SELECT {_KEY}, list(DISTINCT zipcode) FILTER (zipcode IS NOT NULL) AS zipcodes,
    string_agg(DISTINCT place, ' ') AS places
FROM valid_address
GROUP BY {_KEY}
""",
    )


DOCUMENTS = f"""
WITH parts AS (
    SELECT {_KEY}, part, list(entity_number) AS numbers
    FROM owner
    GROUP BY ALL
),
names AS (
    SELECT {_KEY}, part, list(text) AS texts, list([entity_number, text]) AS named
    FROM (
        SELECT o.{_KEY}, min(o.part) AS part, min(o.entity_number) AS entity_number,
            d.denomination AS text
        FROM "current".{DENOMINATION.name} d
        JOIN owner o ON o.entity_number = d.{DENOMINATION.key}
        JOIN subject e ON e.{_KEY} = o.{_KEY}
        WHERE d.denomination != e.primary_name
        GROUP BY o.{_KEY}, d.denomination
    )
    GROUP BY ALL
),
addresses AS (
    SELECT {_KEY}, part, string_agg(text, ' ') AS texts, list([entity_number, text]) AS named
    FROM (
        SELECT {_KEY}, min(part) AS part, min(entity_number) AS entity_number, text
        FROM (
            SELECT {_KEY}, part, entity_number, text_nl AS text
            FROM valid_address
            UNION ALL
            SELECT {_KEY}, part, entity_number, text_fr
            FROM valid_address
        )
        WHERE text IS NOT NULL
        GROUP BY {_KEY}, text
    )
    GROUP BY ALL
),
seats AS (
    SELECT s.{ADDRESS.key}, min({address_order("s")}) AS seat
    FROM "current".{ADDRESS.name} s
    JOIN subject e ON e.{_KEY} = s.{ADDRESS.key}
    WHERE s.type_of_address = '{SEAT}'
    GROUP BY s.{ADDRESS.key}
)
SELECT u.part, e.{_KEY}, e.primary_name, e.status, p.zipcodes, u.numbers, n.texts,
    concat_ws(' ', p.places, a.texts),
    json_array(
        u.part, e.{_KEY}, e.primary_name, e.status, e.form, s.seat.zipcode,
        coalesce(s.seat.municipality_nl, s.seat.municipality_fr),
        s.seat.date_striking_off::VARCHAR, p.places, n.named, a.named
    )::VARCHAR
FROM parts u
JOIN subject e USING ({_KEY})
LEFT JOIN names n USING ({_KEY}, part)
LEFT JOIN addresses a USING ({_KEY}, part)
LEFT JOIN place p USING ({_KEY})
LEFT JOIN seats s ON s.{ADDRESS.key} = e.{_KEY}
ORDER BY p.places, a.texts
"""
"""What each document holds, and its record; neighbours are together, which makes it smaller."""
