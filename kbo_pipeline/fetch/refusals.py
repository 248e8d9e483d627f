"""Which account the portal has refused, and when it may be tried again. Outlives processes.

A portal may lock an account after a few refusals, and a sensor asks every hour. The file holds a
slow, salted hash of the account, never its password.
"""

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.locks import exclusive_lock

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
    """Whether an account was refused last, by a file that names no other."""

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
