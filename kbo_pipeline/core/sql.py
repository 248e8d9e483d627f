"""From table declarations to SQL text; all SQL on the KBO tables is made here.

Identifiers come from the declarations only; values are bound as `$name` parameters. No connection.
The register is attached as `register`, an extract's staging file as `staging`.
"""

from pathlib import Path


def literal(text: str | Path) -> str:
    """A text as an SQL literal, for the few statements that take no parameters."""
    return "'" + str(text).replace("'", "''") + "'"


def glob_escaped(path: Path) -> str:
    """A path as `read_csv` takes it: the characters that it would expand stand for themselves."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(path))
