"""The KBO portal: log in, list, download. No ZIP contents, no database.

The portal may answer 200 to a session that has ended, and then with its login page. So nothing
counts as an answer before it looks like the right one: a list has extracts, a ZIP starts as ZIPs
do. Anything else leads to one fresh login; if that does not help, it is an error, never "no
updates".
"""

import datetime
import hashlib
import html
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kbo_pipeline.downloads import Download
from kbo_pipeline.errors import ExtractError, LoginRefusedError, PortalError
from kbo_pipeline.extracts import ExtractKey, key_in_file_name
from kbo_pipeline.limits import Limits
from kbo_pipeline.locks import exclusive_lock, is_locked, zip_lock
from kbo_pipeline.web import Page, Report, Web

__all__ = ["Limits", "Offer", "Portal", "offers_in"]

T = TypeVar("T")

DAYS_ON_SERVER = 31
"""How long KBO keeps an extract on its server, about."""

_LOGIN = "/static/j_spring_security_check"
_LIST = "/affiliation/xml/?files"
_FILES = "/affiliation/xml/files/"
_LINK = re.compile(r"""\bhref\s*=\s*(?:"files/([^"<>]*)"|'files/([^'<>]*)')""", re.IGNORECASE)
_LOGIN_PAGE = re.compile(r"j_spring_security_check|j_password")

# A portal may lock an account after a few refusals, and a sensor asks every hour: what was refused
# is not tried again by this process for a day. Digests only, salted: no password stays here.
_refused: dict[bytes, float] = {}
_REFUSED_SECONDS = 86_400.0
_SALT = os.urandom(16)


@dataclass(frozen=True, slots=True)
class Offer:
    """An extract that the portal lists.

    Attributes:
        key: which extract.
        file_name: of its ZIP; always a plain KBO name.
    """

    key: ExtractKey
    file_name: str

    @property
    def expires_date(self) -> datetime.date | None:
        """The day on which it leaves the server, about: 31 days after the date in its name.

        None for a monthly name, which has no day.
        """
        day = re.search(r"_(\d{4})_(\d{2})_(\d{2})_", self.file_name)
        if day is None:
            return None
        try:
            named = datetime.date(*map(int, day.groups()))
        except ValueError:
            return None
        return named + datetime.timedelta(days=DAYS_ON_SERVER)

    def __post_init__(self) -> None:
        if not self.file_name.isascii() or key_in_file_name(self.file_name) != self.key:
            raise ExtractError(f"{self.file_name[:80]!r} is no file name of {self.key}; list again")


class Portal:
    """The portal, with a session that is made when needed. For one thread at a time."""

    def __init__(
        self, base_url: str, username: str, password: str, *, limits: Limits | None = None
    ) -> None:
        """Connects to nothing yet.

        Args:
            base_url: of the portal, as in `KBO_PORTAL_URL`.
            username: of the account.
            password: of the account; goes to that server only, and in no message.
            limits: how long to wait for what.

        Raises:
            SettingsError: the address is none.
        """
        self._limits = Limits() if limits is None else limits
        self._base_url = base_url
        self._web = Web(base_url, self._limits)
        self._account = {"j_username": username, "j_password": password}
        account = "\0".join((base_url, username, password)).encode()
        self._digest = hashlib.sha256(_SALT + account).digest()
        self._has_session = False

    def __enter__(self) -> "Portal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Portal({self._base_url!r})"

    def close(self) -> None:
        """Drops connections and session."""
        self._web.close()
        self._has_session = False

    def list_extracts(self, within: float | None = None) -> list[Offer]:
        """What the portal offers now, by number, the Update of a number before its Full.

        Args:
            within: seconds that it may take in all; None for as long as the limits allow.

        Raises:
            LoginRefusedError: the portal refuses the account.
            PortalError: no list, or one without extracts even after a fresh login.
        """
        with self._web.within(within):
            offers = self._with_session(self._listed)
        if offers is None:
            raise PortalError(
                f"GET {self._web.base_path}{_LIST}: lists no extracts, even after a fresh login;"
                " try again later, or see with a browser whether the account may read them"
            )
        return offers

    def download(self, offer: Offer, directory: Path, report: Report) -> Path:
        """Puts the ZIP of an extract into a directory, complete and checked.

        A sound ZIP that lies there is not fetched again; what an earlier call began is continued.
        One process at a time does this for a file, the others wait.

        Args:
            offer: what to fetch.
            directory: where to; made when it is not there.
            report: takes a line of progress, at most once a second, and what goes wrong.

        Raises:
            LoginRefusedError: the portal refuses the account.
            PortalError: no sound ZIP came, whatever was tried.
            ExtractError: the ZIP is another extract than its name says.
            StorageError: the disk is full, or another process holds the file for too long.
        """
        target = directory / offer.file_name
        url = self._web.url(_FILES + offer.file_name)
        download = Download(self._web, url, offer.key, target, report)
        lock = zip_lock(directory, offer.key)
        if is_locked(lock):
            report(f"{target.name}: another process fetches it; waiting")
        with exclusive_lock(lock, timeout=self._limits.lock_wait):
            if not download.is_there() and not self._with_session(download.fetch):
                raise PortalError(
                    f"{target.name}: the portal sends a page instead of the ZIP, even after a fresh"
                    " login; try again later, or fetch it with a browser and use kbo import"
                )
        return target

    def _listed(self) -> list[Offer] | None:
        return offers_in(self._web.page(self._web.url(_LIST)).text) or None

    def _with_session(self, ask: Callable[[], T | None]) -> T | None:
        """What `ask` brings; after nothing, what it brings with a fresh session."""
        if not self._has_session:
            self._log_in()
        answer = ask()
        if answer is None:
            self._log_in()
            answer = ask()
        return answer

    def _log_in(self) -> None:
        self._has_session = False
        if time.monotonic() - _refused.get(self._digest, -math.inf) > _REFUSED_SECONDS:
            self._web.forget_cookies()
            page = self._web.post_form(self._web.url(_LOGIN), self._account)
            if page.status == 200 and self._is_inside(page):
                self._has_session = True
                return
            if page.status != 401 and not _LOGIN_PAGE.search(page.text):
                raise PortalError(
                    f"POST {self._web.base_path}{_LOGIN}: leads to {page.path}, which is neither"
                    " inside nor the login page; try again later, or sign in with a browser"
                )
            _refused[self._digest] = time.monotonic()
        raise LoginRefusedError(
            f"POST {self._web.base_path}{_LOGIN}: the portal refuses the account; check"
            " KBO_USERNAME and KBO_PASSWORD by signing in with a browser, then start again (if not,"
            " the next attempt is in a day)"
        )

    def _is_inside(self, page: Page) -> bool:
        """Whether a login ended where only accounts get: the status says nothing, it is 200."""
        path = page.path.removeprefix(self._web.base_path)
        signing_up = path == "/signup" and "form" in re.split("[&=]", page.query)
        inside = path.startswith("/affiliation/") or signing_up
        return inside and not _LOGIN_PAGE.search(page.text)


def offers_in(page: str) -> list[Offer]:
    """The extracts that a listing links to; of a key that stands there twice, the latest file.

    Only links of the form `files/<KBO name>` count; whatever else the page says is passed over.
    """
    offers: dict[ExtractKey, Offer] = {}
    for link in sorted(html.unescape(match[1] or match[2]) for match in _LINK.finditer(page)):
        key = key_in_file_name(link) if link.isascii() else None
        if key is not None:
            offers[key] = Offer(key, link)
    return sorted(offers.values(), key=lambda offer: offer.key)
