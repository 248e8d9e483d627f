"""What people are told without asking, and how it reaches their webhook. No Dagster."""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.proxies import is_own

Kind = Literal["failed", "gap", "stale", "refused"]

_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that a person should know. Sent once an event.

    Attributes:
        event: names what happened: two alerts of one event are one.
        kind: a failed import, a gap, a stale register, a refused login.
        extract: key of the extract that it is about; None when it is about none.
        stage: where it happened: a job's name, or `portal`.
        error: what is wrong, in one line.
        command: what helps.
    """

    event: str
    kind: Kind
    extract: str | None
    stage: str
    error: str
    command: str

    def __str__(self) -> str:
        extract = f"{self.extract}, " if self.extract else ""
        return f"ALERT {self.kind} ({extract}{self.stage}): {self.error}; {self.command}"

    def to_json(self) -> dict[str, Any]:
        """What the webhook gets; `text` is for those that show one line, such as Slack's."""
        return {**asdict(self), "text": str(self)}


def write_down(alert: Alert, file: Path) -> None:
    """Adds an alert to the log of alerts, a line with the time.

    Raises:
        StorageError: it cannot be written.
    """
    now = datetime.now().astimezone()
    try:
        make_private(file.parent)
        with file.open("a", encoding="utf-8") as log:
            log.write(f"{now:%Y-%m-%d %H:%M:%S %z} {alert}\n")
    except OSError as error:
        raise StorageError(
            f"{file}: cannot be written ({error.strerror}); see its permissions and its disk"
        ) from None


def post(alert: Alert, webhook: str) -> None:
    """Posts an alert as JSON.

    Raises:
        StorageError: the webhook does not take it; names its host, as its path may be a secret.
    """
    import requests  # only who has something to say needs it

    host = urlsplit(webhook).hostname
    place = f"KBO_ALERT_WEBHOOK at {host}"
    try:
        with requests.Session() as session:
            session.trust_env = not is_own(host)
            answer = session.post(
                webhook, json=alert.to_json(), timeout=_SECONDS, allow_redirects=False, stream=True
            )
            answer.close()
    except requests.RequestException as error:
        raise StorageError(f"{place}: {type(error).__name__}; see whether it runs") from None
    if not 200 <= answer.status_code < 300:
        raise StorageError(f"{place}: answers {answer.status_code}; check the address")
