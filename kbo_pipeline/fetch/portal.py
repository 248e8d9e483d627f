"""The KBO portal: log in, list, download. No ZIP contents, no database.

The portal may answer 200 to a session that has ended, and then with its login page. So nothing
counts as an answer before it looks like the right one: a list has extracts, a ZIP starts as ZIPs
do. Where a login leads to says nothing: the list alone decides whether we are in. Anything else
leads to one fresh login; if that does not help, it is an error, never "no updates".

A portal may lock an account after a few refusals, and a sensor asks every hour: a file remembers
which account was refused, and when it may be tried again.
"""

import datetime
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from kbo_pipeline.core.errors import (
    ExtractError,
    LoginRefusedError,
    PortalError,
    PortalRefusedError,
    StorageError,
)
from kbo_pipeline.core.extracts import ExtractKey, key_in_file_name
from kbo_pipeline.core.files import exclusive_lock, is_locked, replace_atomically, zip_lock
from kbo_pipeline.core.progress import ProgressReport, not_reported
from kbo_pipeline.fetch.download import Download
from kbo_pipeline.fetch.http import Limits, Page, Report, Web, same_server
from kbo_pipeline.fetch.pages import read_page

__all__ = ["Limits", "Offer", "Portal", "offers_in"]

DAYS_ON_SERVER = 31
"""How long KBO keeps an extract on its server, about."""

_LOGIN = "/static/j_spring_security_check"
_SIGN_UP = "/signup?form=&lang=en"  # which public clients visit for its cookies
_LIST = "/affiliation/xml/?files"
_OFFICIAL_LIST = f"https://kbopub.economie.fgov.be/kbo-open-data{_LIST}"
_FILES = "/affiliation/xml/files/"
_LOGIN_PATH = re.compile(r"log-?in|sign-?in", re.IGNORECASE)
_ERROR = re.compile(r"error|fail|denied|invalid|incorrect|locked|disabled", re.IGNORECASE)
_SESSION_ID = re.compile(r";jsessionid=[^/;]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Offer:
    """An extract that the portal lists.

    Attributes:
        key: which extract.
        file_name: of its ZIP; always a plain KBO name.
        url: where the list says that it lies; None: where KBO's always did.
    """

    key: ExtractKey
    file_name: str
    url: str | None = None

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
            raise ExtractError(
                f"{self.file_name[:80]!r} is not a file name of {self.key}; list again"
            )


class Portal:
    """The portal, with a session that is made when needed. For one thread at a time."""

    def __init__(
        self,
        base_url: str,
        username: str,
        password: str,
        *,
        memory: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Connects to nothing yet. The password goes to that server only, and into no message.

        Args:
            base_url: of the portal, as in `KBO_PORTAL_URL`.
            username: of the account.
            password: of the account.
            memory: the file that remembers when an account was refused, for all processes; None:
                this object alone remembers it.
            limits: how long to wait for what.

        Raises:
            SettingsError: the address is malformed.
        """
        self._limits = Limits() if limits is None else limits
        self._base_url = base_url
        self._web = Web(base_url, self._limits)
        self._form = {"j_username": username, "j_password": password}
        self._refusals = Refusals(memory, base_url, username, password)
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
        """The extracts on offer by number, the Update of a number before its Full.

        Takes `within` seconds in all at most; None for as long as the limits allow.

        Raises:
            LoginRefusedError: the portal refuses the account.
            PortalError: no list, or one without extracts even after a fresh login.
        """
        with self._web.within(within):
            if self._has_session:
                with suppress(PortalRefusedError):  # which the fresh session meets again, or not
                    listing = self._read_list()
                    if listing.offers:
                        return listing.offers
            return self._log_in()

    def download(
        self,
        offer: Offer,
        directory: Path,
        report: Report,
        report_progress: ProgressReport = not_reported,
    ) -> Path:
        """Puts the ZIP of an extract into a directory, complete and checked.

        A sound ZIP that lies there is not fetched again; what an earlier call began is continued.
        One process at a time does this for a file, the others wait.

        Raises:
            LoginRefusedError: the portal refuses the account.
            PortalError: no sound ZIP came, whatever was tried.
            ExtractError: the ZIP is another extract than its name says.
            StorageError: the disk is full, or another process holds the file for too long.
        """
        target = directory / offer.file_name
        usual_url = self._web.url(_FILES + offer.file_name)
        url = usual_url if offer.url is None else same_server(self._base_url, offer.url)
        if url is None:
            raise PortalRefusedError(
                f"{offer.file_name}: lies on another server, where no account of KBO's portal"
                " belongs; fetch it with a browser and use kbo import"
            )
        download = Download(self._web, url, offer.key, target, report, report_progress)
        lock = zip_lock(directory, offer.key)
        if is_locked(lock):
            report(f"{target.name}: another process fetches it; waiting")
        with exclusive_lock(lock, timeout=self._limits.lock_wait):
            if not download.is_there() and not (
                self._has_session and download.fetch(is_fresh=False)
            ):
                self._log_in()
                if not download.fetch(is_fresh=True):
                    raise PortalError(
                        f"{target.name}: the portal sends a page instead of the ZIP, even after a"
                        " fresh login; try again later, or fetch it with a browser and use kbo"
                        " import"
                    )
        return target

    def _log_in(self) -> list[Offer]:
        """Begins a session; returns the list, which alone tells whether it is one."""
        self._has_session = False
        with self._refusals.locked(min(self._limits.lock_wait, self._limits.total)):
            next_at = self._refusals.next_at()
            if next_at is not None:
                raise self._refused("it did at the last attempt", next_at)
            self._web.forget_cookies()
            landing = self._web.post_form(self._web.url(_LOGIN), self._form)
            listing = self._list_after(landing)
            if listing.offers:
                self._refusals.forget()
                self._has_session = True
                return listing.offers
            if listing.refusal is not None:
                raise self._refused(listing.refusal, self._refusals.note())
        raise PortalError(
            f"GET {self._web.base_path}{_LIST}: lists no extracts, even after a fresh login;"
            " try again later, or see with a browser whether the account may read them"
        )

    def _list_after(self, landing: Page) -> "_Listing":
        """The list after a login; whatever page that has led to, it may be one."""
        if landing.status == 401 and not landing.trail:
            return _Listing([], "the login answers 401")
        for place in landing.trail:
            if _ERROR.search(self._below_base(place)):
                listing = _Listing([])
                with suppress(PortalError):  # it refuses the account, whatever is wrong besides
                    listing = self._read_list()
                return _Listing(listing.offers, f"the login leads to {place.partition('?')[0]}")
        listing = self._read_list()
        if not listing.offers:
            self._web.page(self._web.url(_SIGN_UP), allowed=range(400, 600))
            listing = self._read_list()
        return listing

    def _read_list(self) -> "_Listing":
        page = self._web.page(self._web.url(_LIST), allowed=(401, 403))
        refusal = None
        if page.status in (401, 403):
            refusal = f"the list answers {page.status}"
        elif _LOGIN_PATH.search(self._below_base(page.path)) or read_page(page.text, "").is_login:
            refusal = "the list is the login page, right after a login"
        return _Listing(offers_in(page.text, page.url), refusal)

    def _below_base(self, place: str) -> str:
        return place.removeprefix(self._web.base_path)

    def _refused(self, reason: str, next_at: float) -> LoginRefusedError:
        at = datetime.datetime.fromtimestamp(next_at, datetime.UTC)
        return LoginRefusedError(
            f"POST {self._web.base_path}{_LOGIN}: the portal refuses the account: {reason}; check"
            " KBO_USERNAME and KBO_PASSWORD by signing in with a browser (next attempt at"
            f" {at:%Y-%m-%d %H:%M} UTC, or when they have changed)",
            wait=max(0.0, next_at - time.time()),
        )


@dataclass(frozen=True, slots=True)
class _Listing:
    """What came as the list; if no account gets such a list, `refusal` says why."""

    offers: list[Offer]
    refusal: str | None = None


def offers_in(page: str, address: str = _OFFICIAL_LIST) -> list[Offer]:
    """The extracts that a listing links to; of a key that stands there twice, the latest file.

    Links are resolved as a browser does it. Only those to KBO names on the same server count;
    whatever else the page says is passed over.
    """
    named: list[tuple[str, str]] = []
    for link in read_page(page, address).links:
        url = same_server(address, link)
        if url is not None:
            parts = urlsplit(url)
            path = _SESSION_ID.sub("", parts.path)  # the cookie names the session
            name = unquote(path.rpartition("/")[2].partition(";")[0])
            named.append((name, urlunsplit(parts._replace(path=path))))
    offers: dict[ExtractKey, Offer] = {}
    for name, url in sorted(named):
        key = key_in_file_name(name) if name.isascii() else None
        if key is not None:
            offers[key] = Offer(key, name, url)
    return sorted(offers.values(), key=lambda offer: offer.key)


PAUSES = (3600.0, 4 * 3600.0, 12 * 3600.0)
"""Seconds after the first refusal, the second, and each further one."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An account that was refused.

    Attributes:
        salt: of the hash, in hexadecimal.
        account: its hash.
        refused_at: when it was refused last, in seconds of the epoch.
        count: how often in a row.
    """

    salt: str
    account: str
    refused_at: float
    count: int

    @property
    def next_at(self) -> float:
        """When it may be tried again, in seconds of the epoch."""
        return self.refused_at + PAUSES[min(self.count, len(PAUSES)) - 1]


class Refusals:
    """Whether an account was refused last, for all processes.

    The file holds a slow, salted hash of the account, never its password.
    """

    def __init__(self, file: Path | None, *account: str) -> None:
        """Reads nothing yet.

        Args:
            file: where it is kept; None: in this object only.
            account: all that makes it this one: portal, username, password.
        """
        self.file = file
        self._account = "\0".join(account)
        self._last: Refusal | None = None

    @contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """One process at a time tries an account, so that a wrong password goes out once.

        Raises:
            StorageError: another process is at it for too long.
        """
        if self.file is None:
            yield
            return
        with exclusive_lock(self.file.with_suffix(".lock"), timeout):
            yield

    def next_at(self) -> float | None:
        """When the account may be tried again, in seconds of the epoch; None when it may be now.

        Raises:
            StorageError: the file cannot be read.
        """
        last = self._own()
        if last is None:
            return None
        # A clock that was set back meanwhile must not make the wait longer.
        is_over = not last.refused_at <= time.time() < last.next_at
        return None if is_over else last.next_at

    def note(self) -> float:
        """Notes that the account was refused now; returns when it may be tried again.

        Raises:
            StorageError: it cannot be written.
        """
        last = self._own()
        salt = os.urandom(16).hex()
        count = 1 if last is None else last.count + 1
        self._last = Refusal(salt, _hash(self._account, salt), time.time(), count)
        if self.file is not None:
            try:
                with replace_atomically(self.file) as temporary:
                    temporary.write_text(json.dumps(asdict(self._last)))
                    temporary.chmod(0o600)
            except OSError as error:
                raise StorageError(
                    f"{self.file}: {error.strerror or error}; free disk space, see the permissions"
                ) from None
        return self._last.next_at

    def forget(self) -> None:
        """Forgets the refusal: the account was let in."""
        self._last = None
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _own(self) -> Refusal | None:
        """What is kept, if it is of this account: of another it says nothing."""
        last = self._read()
        return last if last and last.account == _hash(self._account, last.salt) else None

    def _read(self) -> Refusal | None:
        if self.file is None:
            return self._last
        try:
            read = json.loads(self.file.read_bytes())
            return Refusal(
                str(read["salt"]),
                str(read["account"]),
                float(read["refused_at"]),
                max(1, int(read["count"])),
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(
                f"{self.file}: {error.strerror or error}; see its permissions, or delete it"
            ) from None
        except (ValueError, TypeError, KeyError):  # a disk that lost it: one attempt more, at most
            return None


@functools.lru_cache(maxsize=8)
def _hash(account: str, salt: str) -> str:
    """Takes some 50 ms, so that nobody finds a password by trying; once in a process."""
    return hashlib.scrypt(account.encode(), salt=salt.encode(), n=1 << 14, r=8, p=1).hex()
