"""What `kbo doctor` finds, as plain data. No Dagster."""

from dataclasses import asdict, dataclass
from typing import Literal

from kbo_pipeline.core.errors import KboError
from kbo_pipeline.core.text import one_line

Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        severity: an error needs a person; a warning may, or passes by itself.
        subject: what was looked at: a part of the installation, or an extract.
        text: what was found, in one line.
        remedy: what to do; None when there is nothing to do.
    """

    severity: Severity
    subject: str
    text: str
    remedy: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """The finding as `kbo doctor --json` prints it."""
        return asdict(self)


def found_error(subject: str, error: KboError, severity: Severity = "error") -> Finding:
    """The finding of an error of ours, whose message ends with the next step."""
    text, _, remedy = one_line(error).partition("; ")
    return Finding(severity, subject, text, remedy or None)
