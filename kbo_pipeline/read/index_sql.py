"""SQL of the search index: what is in its documents, and what extracts have touched."""

from kbo_pipeline.core.sql import union_all
from kbo_pipeline.core.tables import ADDRESS, DENOMINATION, ENTERPRISE, UNITS
from kbo_pipeline.read.state_sql import address_order
from kbo_pipeline.read.views import SEAT

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

_MOST_STREETS = 5  # addresses of an enterprise whose streets belong to what is said of its place

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


def prepare(*, is_update: bool) -> tuple[str, ...]:
    """Makes the tables that the queries for documents read.

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
SELECT entity_number, {_KEY}
FROM (
{_CURRENT_UNITS}
){where}
UNION ALL
SELECT {_KEY}, {_KEY}
FROM subject
""",
        f"""
CREATE OR REPLACE TEMP TABLE valid_address AS
SELECT o.{_KEY}, a.*
FROM "current".{ADDRESS.name} a
JOIN owner o ON o.entity_number = a.{ADDRESS.key}
WHERE a.date_striking_off IS NULL
""",
        f"""
CREATE OR REPLACE TEMP TABLE place AS
SELECT {_KEY}, list(DISTINCT zipcode) FILTER (zipcode IS NOT NULL) AS zipcodes,
    concat_ws(
        ' ', string_agg(
            DISTINCT concat_ws(' ', zipcode, municipality_nl, municipality_fr), ' '
        ),
        CASE WHEN count(*) <= {_MOST_STREETS}
            THEN string_agg(DISTINCT concat_ws(' ', street_nl, street_fr, house_number), ' ') END
    ) AS places
FROM valid_address
GROUP BY {_KEY}
""",
    )


HEADS = f"""
WITH units AS (
    SELECT {_KEY}, list(entity_number) AS numbers
    FROM owner
    WHERE entity_number != {_KEY}
    GROUP BY {_KEY}
),
seats AS (
    SELECT s.{ADDRESS.key}, min({address_order("s")}) AS seat
    FROM "current".{ADDRESS.name} s
    JOIN subject e ON e.{_KEY} = s.{ADDRESS.key}
    WHERE s.type_of_address = '{SEAT}'
    GROUP BY s.{ADDRESS.key}
)
SELECT e.{_KEY}, e.primary_name, e.status, e.form, p.zipcodes, p.places, u.numbers,
    s.seat.zipcode, coalesce(s.seat.municipality_nl, s.seat.municipality_fr),
    s.seat.date_striking_off::VARCHAR
FROM subject e
LEFT JOIN place p USING ({_KEY})
LEFT JOIN units u USING ({_KEY})
LEFT JOIN seats s ON s.{ADDRESS.key} = e.{_KEY}
"""
"""Each enterprise: its main name, where it is, the numbers of its units, its seat."""

NAMES = f"""
WITH names AS (
    SELECT o.{_KEY}, min(o.entity_number) AS entity_number, d.denomination
    FROM "current".{DENOMINATION.name} d
    JOIN owner o ON o.entity_number = d.{DENOMINATION.key}
    WHERE d.denomination IS NOT NULL
    GROUP BY o.{_KEY}, d.denomination
)
SELECT e.{_KEY}, n.entity_number, n.denomination, e.status, e.form, p.zipcodes, p.places
FROM names n
JOIN subject e USING ({_KEY})
LEFT JOIN place p USING ({_KEY})
WHERE n.denomination != e.primary_name
"""
"""Each other name of an enterprise and of its units; `{_KEY}` sorts before numbers of units."""

_LANGUAGES = ("nl", "fr")

ADDRESSES = f"""
WITH texts AS (
{
    union_all(
        f'''SELECT a.{_KEY}, a.{ADDRESS.key} AS entity_number, a.zipcode, concat_ws(
    ', ', concat_ws(' ', a.street_{language}, a.house_number, a.box),
    concat_ws(' ', a.zipcode, a.municipality_{language})
) AS text
FROM valid_address a
WHERE a.street_{language} IS NOT NULL'''
        for language in _LANGUAGES
    )
}
)
SELECT e.{_KEY}, min(t.entity_number), t.text, e.status, e.form, min(t.zipcode)
FROM texts t
JOIN subject e USING ({_KEY})
GROUP BY e.{_KEY}, t.text, e.status, e.form
"""
"""Each valid address, in each language."""
