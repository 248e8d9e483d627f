"""All that `kbo doctor` can find wrong, as one table, and a finding as plain data. No Dagster."""

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


FINDINGS: dict[str, Finding] = {
    # What is on this machine: doctor.py.
    "no account": Finding(
        "warning",
        "portal account",
        "{names}: not set, so the portal is not asked",
        "set both, or put ZIPs into {inbox}",
    ),
    "open secrets": Finding("warning", "secrets", "{text}", "{remedy}"),
    "open directory": Finding(
        "warning",
        "privacy",
        "{directory}: other users can look into it (mode {mode:03o})",
        "chmod 700 {directory}",
    ),
    "no password": Finding(
        "warning",
        "PostgreSQL",
        "{hosts}: DAGSTER_POSTGRES_URL has no password; whoever reaches that server may get in",
        "make the server ask for a password, and put it into DAGSTER_POSTGRES_URL",
    ),
    "no encryption": Finding(
        "warning",
        "PostgreSQL",
        "{hosts}: DAGSTER_POSTGRES_URL has no sslmode; passwords and data may travel unencrypted",
        "add ?sslmode=verify-full with sslrootcert=FILE, or whatever suits your network",
    ),
    "not writable": Finding(
        "error",
        "directories",
        "{directory}: cannot be written to ({reason})",
        "check its permissions and its disk, or what is in its place",
    ),
    "disk too small": Finding(
        "error",
        "disk",
        "{what} needs about {needed} on the disk of {directory}, where {free} are free",
        "free {missing} more, or move KBO_DATA_DIR",
    ),
    "not started": Finding(
        "warning",
        "kbo start",
        "does not run: nothing is fetched, imported or retried by itself",
        "kbo start",
    ),
    "no web UI": Finding(
        "warning",
        "kbo start",
        "runs as process {pid}, but no web UI answers on port {port}",
        "wait until it has started, check whether its KBO_UI_PORT is another one, or see {log}",
    ),
    "paused": Finding("warning", "pause", "paused: nothing new begins", "kbo resume"),
    "other views": Finding(
        "warning",
        "views",
        "those of {file} were made by another version, or with another KBO_PRIVACY than {privacy}",
        "kbo start, kbo rebuild and the next publication recreate them",
    ),
    "no search index": Finding(
        "warning",
        "search index",
        "{text}",
        "kbo start or kbo index makes it; until then, searches forgive nothing",
    ),
    "no register": Finding(
        "error",
        "register at work",
        "{file}: missing, although a register is published",
        "kbo start or kbo rebuild restores it",
    ),
    "register does not open": Finding(
        "error",
        "register at work",
        "{text}",
        "if another program has it open, close that program; otherwise run kbo rebuild",
    ),
    "rejected ZIPs": Finding(
        "warning",
        "inbox",
        "{count} rejected: {names}",
        "the .txt beside each in {directory} gives the reason; then delete them",
    ),
    "foreign files": Finding(
        "warning",
        "inbox",
        "ignored, because the name does not end in .zip: {names}",
        "rename or delete them",
    ),
    "waiting ZIPs": Finding(
        "warning", "inbox", "{count} ZIPs wait: {names}", "kbo start imports them"
    ),
    "unfinished files": Finding(
        "warning",
        "leftovers",
        "unfinished for more than a day: {names}",
        "delete them; a download that is still wanted starts again",
    ),
    "files put aside": Finding(
        "warning",
        "leftovers",
        "put aside when sound files replaced them: {names}",
        "delete them when nobody needs them to find out what happened",
    ),
    "old staging files": Finding(
        "warning",
        "leftovers",
        "staging files of published extracts: {names}",
        "the next publication removes them; or delete them",
    ),
    # What Dagster's storage says: dagster_checks.py.
    "silent daemon": Finding(
        "error",
        "daemon",
        "no sign of life for {seconds:.0f} s from {names}",
        "see {log}, then stop kbo start and start it again",
    ),
    "daemon error": Finding("warning", "daemon", "{name}: {error}", "see {log}"),
    "stopped sensor": Finding(
        "warning",
        "sensors",
        "{name} was stopped by hand",
        "start {name} in the web UI, under Automation",
    ),
    "silent sensor": Finding(
        "error", "sensors", "{name} has not run {since}", "see {log} and daemon.log beside it"
    ),
    "failed sensor": Finding(
        "error",
        "sensors",
        "{name} failed at {time}: {error}",
        "fix the cause; it runs again by itself; see the web UI or {log} for details",
    ),
    "run waits": Finding(
        "warning", "runs", "{run} has been waiting in the queue for {hours:.0f} hours", "{remedy}"
    ),
    "killed command": Finding(
        "error",
        "runs",
        "{run}: the kbo process that it ran in was killed",
        "kbo retry {extract}",
    ),
    "dead run": Finding(
        "error", "runs", "{run} is recorded as running, but its process has died", "{remedy}"
    ),
    "failed run": Finding("error", "runs", "{job} failed: {error}", "{remedy}"),
    "lost slot": Finding(
        "error",
        "pools",
        "{pool}: the slot is taken by run {run}, which is not recorded",
        "free it in the web UI: Deployment, Concurrency, {pool}",
    ),
    "kept slot": Finding(
        "error",
        "pools",
        "{pool}: the slot is taken by run {run}, which has ended",
        "kbo start frees it within seconds",
    ),
    "gap": Finding("error", "extracts", "{text}", "{remedy}"),
    "cancelled": Finding(
        "warning",
        "extracts",
        "cancelled: it waits, and so do later ones",
        "kbo retry {extract} continues, kbo rollback {extract} undoes what is applied",
    ),
    "rolled back": Finding(
        "warning",
        "extracts",
        "was rolled back",
        "kbo retry {extract} imports it again, or import a later Full",
    ),
    "not staged": Finding("warning", "extracts", "begun, but not staged", "kbo retry {extract}"),
    "not applied": Finding(
        "warning",
        "extracts",
        "{done} of {total} batches are applied, and nothing is working on it",
        "kbo retry {extract}, or kbo start",
    ),
    "rows set aside": Finding(
        "warning",
        "rows set aside",
        "{rows} of its ZIP could not be read and were set aside",
        "SELECT * FROM rejected_row WHERE extract = '{extract}' shows them and why",
    ),
    "portal needs a person": Finding("error", "portal", "{poll}", "{remedy}"),
    "portal failed": Finding("warning", "portal", "{poll}", "{remedy}"),
    "portal not asked": Finding(
        "warning",
        "portal",
        "{poll}; not asked again since",
        "see the ticks of kbo_extract_sensor in the web UI",
    ),
    "extracts due": Finding("warning", "portal", "{poll}", "kbo start imports what is due"),
    "stale": Finding(
        "warning",
        "freshness",
        "{text}",
        "see the other findings, or get newer ZIPs and kbo import them",
    ),
    "differs": Finding(
        "error",
        "proof",
        "{proof}",
        "kbo repair {extract} closes the difference; the JSON file of that number in {directory}"
        " shows where it is",
    ),
    "not proven": Finding(
        "warning",
        "proof",
        "not compared with KBO's Full for {days} days",
        "kbo verify does; see the ticks of proof_sensor in the web UI",
    ),
    "lost extract": Finding(
        "warning", "ledger", "lost, and to be imported again", "kbo retry {extract}"
    ),
    "disagreement": Finding("error", "ledger", "{text}", "kbo start or kbo rebuild repairs it"),
    # Wherever a check cannot do its work: doctor.py.
    "check failed": Finding(
        "error", "checks", "cannot be checked: {error}", "fix that, then run kbo doctor again"
    ),
}
"""Each finding that is not ok: its usual severity, its subject, what is wrong, what to do.

Errors of ours (`problem_of`) are findings too; their message has the next step.
"""


def problem(
    name: str, severity: Severity | None = None, subject: object = None, /, **values: object
) -> Finding:
    """A finding of the table, with the values that its texts name.

    Severity and subject, such as an extract, replace those of the table.
    """
    row = FINDINGS[name]
    return Finding(
        severity or row.severity,
        row.subject if subject is None else str(subject),
        row.text.format(**values),
        None if row.remedy is None else row.remedy.format(**values),
    )


def no_problem(subject: str, text: str) -> Finding:
    """A finding that nothing is wrong."""
    return Finding("ok", subject, text)


def problem_of(subject: str, error: KboError, severity: Severity = "error") -> Finding:
    """The finding of an error of ours, whose message ends with the next step."""
    text, _, remedy = one_line(error).partition("; ")
    return Finding(severity, subject, text, remedy or None)
