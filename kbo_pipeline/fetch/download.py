"""One extract's ZIP on its way from a web server into a directory: resumed, checked, complete.

Beside `<name>` lies `<name>.part`, what came so far, and `<name>.part.json`, by which the server
can tell whether it still has the same file. Nothing stands under `<name>` before it is sound.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import requests

from kbo_pipeline.core.disk_space import check_space_to_keep
from kbo_pipeline.core.errors import ExtractError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import move_into_place
from kbo_pipeline.core.progress import ProgressReport, not_reported
from kbo_pipeline.core.text import megabytes
from kbo_pipeline.fetch.archive import damage, read_extract
from kbo_pipeline.fetch.http import BrokenError, Report, Web

_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_STRONG_ETAG = re.compile(r'"[!-~]{1,200}"')
MAX_ZIP_BYTES = 4 << 30
"""What a ZIP may come to; a Full of KBO is 313 MB, with its members stored 2.2 GB."""

_ROOM_BYTES = 8 << 20  # between two checks of the disk space
_HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, [0-9A-Za-z: ]{10,40} GMT")


@dataclass(frozen=True, slots=True)
class _Resumable:
    """What the server says of the whole file whose first bytes lie in the part."""

    validator: str
    length: int


class Download:
    """One extract's ZIP on its way into a directory. The caller holds the file's lock."""

    def __init__(
        self,
        web: Web,
        url: str,
        key: ExtractKey,
        target: Path,
        report: Report,
        report_progress: ProgressReport = not_reported,
    ) -> None:
        """Fetches nothing yet."""
        self._web = web
        self._url = url
        self._key = key
        self._target = target
        self._report, self._report_progress = report, report_progress
        self._part = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")

    def is_there(self) -> bool:
        """Tells whether the ZIP lies there already, sound and of the right extract."""
        if not self._target.is_file():
            return False
        problem = damage(self._target)
        if problem is None:
            try:
                key = read_extract(self._target).key
                problem = None if key == self._key else f"it is {key}"
            except ExtractError as error:
                problem = str(error)
        if problem is not None:
            self._report(f"{self._target.name}: the file that is there is not kept ({problem})")
            return False
        self._forget_part()  # of a process that died right after the rename
        return True

    def fetch(self, *, is_fresh: bool) -> bool:
        """Fetches the ZIP, in as many attempts as it takes and the limits allow.

        Returns False when the session is over: the server sends a page instead or, unless the login
        is fresh, 401 or 403.

        Raises:
            PortalError: no sound ZIP came.
            ExtractError: it is another extract, or longer than any.
            StorageError: it cannot be written.
        """
        return self._web.retrying(lambda: self._fetch_once(is_fresh), self._report)

    def _fetch_once(self, is_fresh: bool) -> bool:
        noted = self._read_note()
        try:
            is_whole = noted is not None and self._size() == noted.length
            if not is_whole and not self._receive(noted, is_fresh):
                return False
            self._check()
            move_into_place(self._part, self._target)
        except OSError as error:
            with suppress(OSError):  # reported below
                self._make_room()
            raise StorageError(
                f"{self._part}: {error.strerror or error}; free disk space, see the permissions"
            ) from None
        self._forget_part()
        return True

    def _receive(self, noted: _Resumable | None, is_fresh: bool) -> bool:
        """Brings the part to its full length; False when a page came instead."""
        start = self._size() if noted else 0
        headers = {}
        if noted and start:
            headers = {"Range": f"bytes={start}-", "If-Range": noted.validator}
        allowed = (416,) if is_fresh else (401, 403, 416)
        with self._web.opened(self._url, headers, allowed=allowed) as response:
            if response.status_code in (401, 403):
                return False
            if response.status_code == 416 or not _continues(response, start, noted):
                self._forget_part()
                raise BrokenError(f"{self._target.name}: cannot be continued, starts over")
            chunks = self._web.chunks(response)
            if response.status_code == 206:
                length: int | None = noted.length if noted else None
            else:
                start, length = 0, _content_length(response)
                head = b""
                for chunk in chunks:
                    head += chunk
                    if len(head) >= 4:
                        break
                if not head.startswith(b"PK"):
                    kind = response.headers.get("Content-Type", "").lower()
                    if "html" in kind or head.startswith(b"<"):
                        return False  # the part stays: it is not its fault
                    raise BrokenError(f"{self._target.name}: the download is not a ZIP")
                self._start_over(response, head, length)
            self._append(chunks, start, length)
        size = self._size()
        if length is not None and size != length:
            if size > length:
                self._forget_part()
            raise BrokenError(f"{self._target.name}: {size:,} of {length:,} bytes arrived")
        return True

    def _start_over(self, response: requests.Response, head: bytes, length: int | None) -> None:
        self._forget_part()
        if length is not None:
            self._check_length(length)
            check_space_to_keep(self._target.name, self._target.parent, length)
        self._part.write_bytes(head)
        validator = _validator(response)
        if validator is not None and length is not None:
            self._note.write_text(json.dumps(asdict(_Resumable(validator, length))))

    def _check_length(self, length: int) -> None:
        if length > MAX_ZIP_BYTES:
            self._forget_part()
            raise ExtractError(
                f"{self._target.name}: {length:,} bytes or more; {MAX_ZIP_BYTES:,} at most are"
                " fetched, more than any extract has; see with a browser what the portal offers"
            )

    def _check_room(self) -> None:
        try:
            check_space_to_keep(self._target.name, self._target.parent, 0)
        except StorageError:
            self._make_room()
            raise

    def _make_room(self) -> None:
        """Drops a part that no later attempt can go on with."""
        if self._read_note() is None:
            self._forget_part()

    def _append(self, chunks: Iterator[bytes], start: int, length: int | None) -> None:
        began = shown = time.monotonic()
        seen = 0
        with self._part.open("ab") as out:
            if start:
                self._report(f"{self._target.name}: continues at {megabytes(start, 1)}")
            for chunk in chunks:
                out.write(chunk)
                if length:
                    words = f"downloading {self._target.name}, {megabytes(length, 1)}"
                    self._report_progress(out.tell() / length, words)
                if out.tell() - seen >= _ROOM_BYTES:
                    seen = out.tell()
                    self._check_length(seen)
                    self._check_room()
                now = time.monotonic()
                if now - shown >= 1.0:
                    shown = now
                    self._report(self._progress(out.tell(), start, length, now - began))

    def _progress(self, size: int, start: int, length: int | None, seconds: float) -> str:
        speed = (size - start) / seconds
        line = f"{self._target.name}: {megabytes(size, 1)}, {megabytes(speed, 2)}/s"
        if length is None or not speed:
            return line
        left = (length - size) / speed
        return f"{line}, of {megabytes(length, 1)}, {left:,.0f} s left"

    def _check(self) -> None:
        """Makes sure that the part is the ZIP that was asked for, or drops it."""
        problem = damage(self._part)
        if problem is not None:
            self._forget_part()
            raise BrokenError(f"{self._target.name}: the download is damaged ({problem})")
        try:
            key = read_extract(self._part).key
        except ExtractError:
            self._forget_part()
            raise
        if key != self._key:
            self._forget_part()
            raise ExtractError(
                f"{self._target.name}: its meta.csv says {key}, not {self._key}; nothing is kept,"
                " see with a browser what the portal offers"
            )

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.is_file() else 0

    def _forget_part(self) -> None:
        # The note first: a note without its part says nothing, one with another's would lie.
        self._note.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)

    def _read_note(self) -> _Resumable | None:
        try:
            read = json.loads(self._note.read_bytes())
            noted = _Resumable(read["validator"], read["length"])
            right = _is_validator(noted.validator) and 0 < self._size() <= noted.length
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return noted if right else None


def _continues(response: requests.Response, start: int, noted: _Resumable | None) -> bool:
    """Whether a 206 is the rest that was asked for; any other status needs no such check."""
    if response.status_code != 206:
        return True
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or noted is None or _is_coded(response):
        return False
    etag = response.headers.get("ETag", noted.validator)
    if noted.validator.startswith('"') and etag != noted.validator:
        return False  # the server does not know If-Range, and the file has changed
    return (int(match[1]), int(match[2]) + 1, int(match[3])) == (start, noted.length, noted.length)


def _validator(response: requests.Response) -> str | None:
    """What to send as If-Range, if the server lets downloads be continued."""
    if response.headers.get("Accept-Ranges", "").strip().lower() != "bytes" or _is_coded(response):
        return None
    for name in ("ETag", "Last-Modified"):
        text = response.headers.get(name, "")
        if _is_validator(text):
            return text
    return None


def _is_validator(text: str) -> bool:
    """A weak ETag is none: it can be equal for different bytes (RFC 9110, 13.1.5)."""
    return bool(_STRONG_ETAG.fullmatch(text) or _HTTP_DATE.fullmatch(text))


def _content_length(response: requests.Response) -> int | None:
    text = "" if _is_coded(response) else response.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _is_coded(response: requests.Response) -> bool:
    """Whether what is sent is not what the ZIP holds: its length and ranges are of no use then."""
    return response.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity")
