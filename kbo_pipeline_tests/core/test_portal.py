"""The portal client against the stand-in, over real HTTP: each bad day ends as it should."""

import contextlib
import dataclasses
import email.utils
import itertools
import logging
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme

from kbo_pipeline.core.errors import (
    ExtractError,
    KboError,
    LoginRefusedError,
    PortalError,
    PortalRefusedError,
    SettingsError,
    StorageError,
)
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.fetch.http import Limits
from kbo_pipeline.fetch.portal import Offer, Portal, offers_in
from kbo_pipeline_tests.support.faulty_portal import SHORT, Effect, Fault, FaultyPortal, Kind
from kbo_pipeline_tests.support.zips import write_extract

IMPATIENT = dataclasses.replace(SHORT, read=0.5, total=1.0, window=0.3)
CANARY = "canary-Passw0rd-é&=%"
UPDATE = ExtractKey(141, "update")
FULL = ExtractKey(140, "full")
_accounts = itertools.count()


@dataclasses.dataclass
class World:
    """A stand-in, an account on it, and a directory to download to."""

    portal: FaultyPortal
    served: Path
    directory: Path
    username: str
    password: str = CANARY
    limits: Limits = SHORT
    lines: list[str] = dataclasses.field(default_factory=list)

    def client(self, password: str | None = None) -> Portal:
        password = self.password if password is None else password
        return Portal(self.portal.url, self.username, password, limits=self.limits)

    def fetch(self, key: ExtractKey = UPDATE) -> Path:
        with self.client() as client:
            (offer,) = (offer for offer in client.list_extracts() if offer.key == key)
            return client.download(offer, self.directory, self.lines.append)

    def source(self, key: ExtractKey = UPDATE) -> Path:
        (file,) = self.served.glob(f"KboOpenData_{key.number:04d}_*_{key.type.title()}.zip")
        return file

    def is_fetched(self, key: ExtractKey = UPDATE) -> bool:
        """Whether the ZIP lies there, byte for byte, and nothing half-done beside it."""
        source = self.source(key)
        target = self.directory / source.name
        leftovers = list(self.directory.glob("*.part*"))
        return target.read_bytes() == source.read_bytes() and not leftovers

    def is_absent(self) -> bool:
        return not list(self.directory.glob("*.zip"))


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("templates")
    noise = random.Random(1).randbytes(40_000).hex()  # compresses to about its half
    write_extract(directory, UPDATE, {}, members={"noise.csv": noise})
    write_extract(directory, FULL, {})
    return directory


@pytest.fixture
def world(tmp_path: Path, templates: Path) -> Iterator[World]:
    served, directory = tmp_path / "served", tmp_path / "downloads"
    shutil.copytree(templates, served)
    username = f"account-{next(_accounts)}"
    with FaultyPortal(served, accounts={username: CANARY}) as portal:
        yield World(portal, served, directory, username)


def test_extracts_are_listed_and_fetched_in_one_session(world: World) -> None:
    with world.client() as client:
        offers = client.list_extracts()
        assert [offer.key for offer in offers] == [FULL, UPDATE]
        for offer in offers:
            client.download(offer, world.directory, world.lines.append)
    assert world.is_fetched(FULL)
    assert world.is_fetched(UPDATE)
    kinds = [request.kind for request in world.portal.requests if request.kind is not Kind.OTHER]
    assert kinds == [Kind.LOGIN, Kind.LIST, Kind.DOWNLOAD, Kind.DOWNLOAD]
    cookies = world.portal.of_kind(Kind.DOWNLOAD)[0].headers["cookie"]
    assert "JSESSIONID" in cookies
    assert "KSESSIONID-KBOPUB" in cookies


def test_what_is_put_there_later_is_listed_too(world: World) -> None:
    with world.client() as client:
        assert len(client.list_extracts()) == 2
        write_extract(world.served, ExtractKey(142, "update"), {})
        assert [offer.key.number for offer in client.list_extracts()] == [140, 141, 142]


def test_a_login_that_leads_to_the_sign_up_form_is_one(world: World) -> None:
    world.portal.landing = "/signup?form"
    assert world.fetch().is_file()


@pytest.mark.parametrize("landing", ["/login", "/", "/affiliation", "/signup", "/news?form"])
def test_wherever_a_login_leads_the_list_decides(world: World, landing: str) -> None:
    world.portal.landing = landing
    assert world.fetch().is_file()
    assert world.portal.count(Kind.LOGIN) == 1


def test_a_login_page_where_only_accounts_get_is_no_login(world: World) -> None:
    world.portal.landing = "/affiliation/xml/?files"
    world.portal.add_fault(Fault(Kind.LIST, Effect.LOGIN_PAGE, times=None))
    with world.client() as client, pytest.raises(LoginRefusedError):
        client.list_extracts()


def test_a_sound_zip_is_not_fetched_again_and_a_damaged_one_is(world: World) -> None:
    target = world.fetch()
    world.fetch()
    assert world.portal.count(Kind.DOWNLOAD) == 1
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 0xFF
    target.write_bytes(content)
    world.fetch()
    assert world.portal.count(Kind.DOWNLOAD) == 2
    assert world.is_fetched()
    assert any("the file that is there is not kept" in line for line in world.lines)


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize(
    "hostile",
    [
        "../../x.zip",
        "..%2FKboOpenData_0150_2025_10_06_Update.zip",
        "KboOpenData_0150_2025_10_06_Update.zip%00",
        "KboOpenData_0150_2025_10_06_Update.zip\0",
        "KboOpenData_\u0660\u0661\u0665\u0660_2025_10_06_Update.zip",
        "KboOpenData_0000_2025_10_06_Update.zip",
        "KboOpenData_0150_2025_10_06_Update.exe",
        "KboOpenData_0150_2025_10_06_Update.zip/",
        "x.zip?KboOpenData_0150_2025_10_06_Update.zip",
        "x.zip#KboOpenData_0150_2025_10_06_Update.zip",
    ],
)
def test_hostile_names_in_the_listing_are_passed_over(
    world: World, hostile: str, quote: str
) -> None:
    world.portal.quote = quote
    world.portal.extra_html = f"<a href={quote}files/{hostile}{quote}>.</a>"
    with world.client() as client:
        assert [offer.key for offer in client.list_extracts()] == [FULL, UPDATE]


def test_of_two_files_of_one_extract_the_latest_is_offered() -> None:
    names = ["KboOpenData_0137_2025_10_02_Full.zip", "KboOpenData_0137_2025_10_01_Full.zip"]
    (offer,) = offers_in("".join(f"<a href='files/{name}'>" for name in names))
    assert offer.file_name == names[0]


@pytest.mark.parametrize("name", ["../KboOpenData_0141_2025_10_06_Update.zip", "x.zip", ""])
def test_an_offer_holds_no_other_name(name: str) -> None:
    with pytest.raises(ExtractError, match="is not a file name of 0141-update"):
        Offer(UPDATE, name)


def test_a_password_that_is_refused_later_is_not_repeated(world: World) -> None:
    with world.client() as client:
        client.list_extracts()
        world.portal.expire_sessions()
        world.portal.add_fault(Fault(Kind.LOGIN, Effect.LOGIN_PAGE, times=None))
        for _ in range(3):
            with pytest.raises(LoginRefusedError):
                client.list_extracts()
    assert world.portal.count(Kind.LOGIN) == 2


@pytest.mark.parametrize("kind", [Kind.LIST, Kind.DOWNLOAD])
@pytest.mark.parametrize("effect", [Effect.LOGIN_PAGE, Effect.EXPIRE])
def test_a_session_that_ends_leads_to_one_fresh_login(
    world: World, kind: Kind, effect: Effect
) -> None:
    with world.client() as client:
        client.list_extracts()
        world.portal.add_fault(Fault(kind, effect))
        offer = client.list_extracts()[-1]
        client.download(offer, world.directory, world.lines.append)
    assert world.is_fetched()
    assert world.portal.count(Kind.LOGIN) == 2


@pytest.mark.parametrize("effect", [Effect.LOGIN_PAGE, Effect.EXPIRE])
def test_a_login_page_instead_of_the_listing_after_a_login_is_a_refusal(
    world: World, effect: Effect
) -> None:
    world.portal.add_fault(Fault(Kind.LIST, effect, times=None))
    with world.client() as client, pytest.raises(LoginRefusedError, match="the login page"):
        client.list_extracts()
    assert (world.portal.count(Kind.LOGIN), world.portal.count(Kind.LIST)) == (1, 2)


def test_a_listing_that_stays_away_is_an_error_not_an_empty_list(world: World) -> None:
    with world.client() as client:
        client.list_extracts()
        world.portal.add_fault(Fault(Kind.LIST, Effect.PAGE, times=None))
        with pytest.raises(PortalError, match="no extracts") as error:
            client.list_extracts()
    assert error.value.transient
    assert (world.portal.count(Kind.LOGIN), world.portal.count(Kind.LIST)) == (2, 4)


def test_an_empty_listing_is_believed_by_nobody(world: World) -> None:
    for file in world.served.iterdir():
        file.unlink()
    with world.client() as client, pytest.raises(PortalError, match="no extracts"):
        client.list_extracts()
    assert (world.portal.count(Kind.LOGIN), world.portal.count(Kind.LIST)) == (1, 2)


@pytest.mark.parametrize("effect", [Effect.LOGIN_PAGE, Effect.EXPIRE, Effect.PAGE])
def test_a_page_instead_of_the_zip_is_an_error(world: World, effect: Effect) -> None:
    world.portal.add_fault(Fault(Kind.DOWNLOAD, effect, times=None))
    with pytest.raises(PortalError, match="a page instead of the ZIP"):
        world.fetch()
    assert world.is_absent()
    assert world.portal.count(Kind.DOWNLOAD) == 2


@pytest.mark.parametrize("kind", [Kind.LOGIN, Kind.LIST, Kind.DOWNLOAD])
@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_told_and_not_tried_again(world: World, kind: Kind, status: int) -> None:
    world.portal.add_fault(Fault(kind, Effect.STATUS, times=None, status=status))
    expected: type[PortalError] = PortalRefusedError
    text = rf"/kbo-open-data/\S+: answers {status}; "
    is_asked_again = kind is not Kind.LOGIN and status in (401, 403)  # by a fresh session
    if (kind, status) == (Kind.LOGIN, 401) or (kind is Kind.LIST and is_asked_again):
        expected, text = LoginRefusedError, f"security_check: the portal refuses.*answers {status}"
    with pytest.raises(expected, match=text) as error:
        world.fetch()
    assert not error.value.transient
    assert world.portal.count(kind) == (2 if is_asked_again else 1)
    assert world.is_absent()


KINDS = [Kind.LOGIN, Kind.LIST, Kind.DOWNLOAD]
PASSING = {
    "500": SimpleNamespace(effect=Effect.STATUS, status=500, times=2),
    "502": SimpleNamespace(effect=Effect.STATUS, status=502),
    "503": SimpleNamespace(effect=Effect.STATUS, status=503, times=2),
    "429": SimpleNamespace(effect=Effect.STATUS, status=429),
    "429, wait": SimpleNamespace(effect=Effect.STATUS, status=429, retry_after="0"),
    "429, wait for a day that is none": SimpleNamespace(
        effect=Effect.STATUS,
        status=429,
        retry_after="Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    ),
    "cut": SimpleNamespace(effect=Effect.CUT),
    "silence": SimpleNamespace(effect=Effect.SILENCE, seconds=1.0),
    "trickle": SimpleNamespace(effect=Effect.TRICKLE, seconds=0.2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again(world: World, kind: Kind, name: str) -> None:
    world.limits = IMPATIENT if name in ("silence", "trickle") else SHORT
    fault = Fault(kind, **vars(PASSING[name]))
    world.portal.add_fault(fault)
    world.fetch()
    assert world.is_fetched()
    expected = 1 + (fault.times or 0)
    # On a machine under load the impatient may give up once more.
    most = world.limits.attempts if world.limits is IMPATIENT else expected
    assert expected <= world.portal.count(kind) <= most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PASSING)
def test_what_does_not_pass_ends(world: World, kind: Kind, name: str) -> None:
    fault = dataclasses.replace(Fault(kind, **vars(PASSING[name])), times=None)
    world.portal.add_fault(fault)
    world.limits = IMPATIENT if name in ("silence", "trickle") else SHORT
    began = time.monotonic()
    with pytest.raises(PortalError, match=r"/kbo-open-data/\S+: .*try again later") as error:
        world.fetch()
    assert error.value.transient
    assert time.monotonic() - began < 8
    assert world.is_absent()
    # A form that may have arrived goes out only once more.
    unanswered = fault.effect is not Effect.STATUS and kind is Kind.LOGIN
    expected = 2 if unanswered else SHORT.attempts
    while world.portal.count(kind) < expected and time.monotonic() - began < 20:
        time.sleep(0.01)  # on a machine under load a request may be looked at after it was given up
    assert world.portal.count(kind) == expected


@pytest.mark.parametrize(
    ("kind", "status", "form"),
    [
        (Kind.LOGIN, 429, "seconds"),
        (Kind.LIST, 503, "date"),
        (Kind.DOWNLOAD, 429, "date"),
        (Kind.DOWNLOAD, 503, "seconds"),
    ],
)
def test_retry_after_is_obeyed(world: World, kind: Kind, status: int, form: str) -> None:
    world.limits = dataclasses.replace(SHORT, longest_retry_after=5.0)
    date = email.utils.formatdate(time.time() + 2, usegmt=True)
    retry_after = "1" if form == "seconds" else date
    world.portal.add_fault(Fault(kind, Effect.STATUS, status=status, retry_after=retry_after))
    began = time.monotonic()
    world.fetch()
    assert 0.9 < time.monotonic() - began < 4
    assert world.is_fetched()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_too_long_a_wait_is_refused_and_told(
    world: World, kind: Kind, status: int, form: str
) -> None:
    until = time.time() + 3600
    retry_after = "3600" if form == "seconds" else email.utils.formatdate(until, usegmt=True)
    world.portal.add_fault(Fault(kind, Effect.STATUS, status=status, retry_after=retry_after))
    with pytest.raises(PortalError, match=r"try again after \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"):
        world.fetch()
    assert world.portal.count(kind) == 1


@pytest.mark.parametrize("retry_after", ["", "soon", "-1", "٣", "Mon, 99 Foo 2025 00:00:00 GMT"])
def test_a_retry_after_that_says_nothing_is_passed_over(world: World, retry_after: str) -> None:
    fault = Fault(
        Kind.LIST, Effect.STATUS, status=429, retry_after=retry_after.encode().decode("latin-1")
    )
    world.portal.add_fault(fault)
    assert world.fetch().is_file()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:{port}/kbo-open-data/affiliation/xml/",
        "http://127.0.0.1:1/kbo-open-data/affiliation/",
        "https://127.0.0.1:{port}/kbo-open-data/affiliation/",
        "//evil.example/affiliation/",
        "ftp://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}@evil.example/",
        "http://[::",
    ],
)
def test_nothing_follows_to_another_server(world: World, kind: Kind, location: str) -> None:
    location = location.format(port=world.portal.port)
    world.portal.add_fault(Fault(kind, Effect.REDIRECT, location=location))
    with pytest.raises(PortalRefusedError, match="redirects to ") as error:
        world.fetch()
    if "evil" in location:
        assert "http://evil.example:80" in str(error.value)
    assert world.portal.count(kind) == 1


def test_another_server_gets_neither_cookies_nor_credentials(world: World, tmp_path: Path) -> None:
    with FaultyPortal(world.served, accounts={world.username: CANARY}) as other:
        location = f"{other.url}/affiliation/xml/?files"
        world.portal.add_fault(Fault(Kind.LIST, Effect.REDIRECT, location=location))
        with pytest.raises(PortalRefusedError, match=f"http://127.0.0.1:{other.port}"):
            world.fetch()
        assert other.requests == []


def test_redirects_in_a_circle_end(world: World) -> None:
    location = "/kbo-open-data/affiliation/xml/?files"
    world.portal.add_fault(Fault(Kind.LIST, Effect.REDIRECT, times=None, location=location))
    with pytest.raises(PortalError, match="redirects endlessly"):
        world.fetch()


@pytest.mark.parametrize("place", range(10))
def test_a_cut_download_goes_on_where_it_was(world: World, place: int) -> None:
    size = world.source().stat().st_size
    after = random.Random(place).randrange(8, size)
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.CUT, after=after))
    world.portal.etags = place % 2 == 0  # else by its date
    world.fetch()
    assert world.is_fetched()
    first, second = world.portal.of_kind(Kind.DOWNLOAD)
    assert second.status == 206
    assert second.headers["range"] == f"bytes={after}-"
    assert second.sent == size - after
    assert first.sent == after


@pytest.mark.parametrize("place", range(10))
def test_a_cut_download_starts_over_where_it_cannot_go_on(world: World, place: int) -> None:
    size = world.source().stat().st_size
    after = random.Random(place).randrange(size)
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.CUT, after=after))
    world.portal.ranges = False
    world.fetch()
    assert world.is_fetched()
    first, second = world.portal.of_kind(Kind.DOWNLOAD)
    assert "range" not in second.headers
    assert (first.sent, second.sent) == (after, size)


def test_a_download_goes_on_in_the_next_process(world: World) -> None:
    fault = Fault(Kind.DOWNLOAD, Effect.CUT, times=SHORT.attempts, after=1000)
    world.portal.add_fault(fault)
    with pytest.raises(PortalError):
        world.fetch()
    assert world.is_absent()
    world.fetch()
    assert world.is_fetched()
    starts = [r.headers.get("range") for r in world.portal.of_kind(Kind.DOWNLOAD)]
    assert starts == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-"]
    assert any("continues at" in line for line in world.lines)


def test_a_zip_that_changed_meanwhile_starts_over(world: World) -> None:
    world.limits = dataclasses.replace(SHORT, attempts=1)
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.CUT, after=1000))
    with pytest.raises(PortalError):
        world.fetch()
    write_extract(world.served, UPDATE, {}, members={"noise.csv": "another\n" * 5000})
    world.fetch()
    assert world.is_fetched()
    last = world.portal.of_kind(Kind.DOWNLOAD)[-1]
    assert last.headers["range"] == "bytes=1000-"
    assert last.status == 200


@pytest.mark.parametrize(
    "note",
    [
        "",
        "[]",
        "{}",
        '{"validator": 1, "length": 5000}',
        '{"validator": "W/\\"x\\"", "length": 5000}',
        '{"validator": "\\"a\\\\r\\\\nX: y\\"", "length": 5000}',
        '{"validator": "\\"x\\"", "length": 3}',
    ],
)
def test_a_note_that_makes_no_sense_is_passed_over(world: World, note: str) -> None:
    world.directory.mkdir()
    part = world.directory / f"{world.source().name}.part"
    part.write_bytes(b"PK and something else")
    part.with_name(f"{part.name}.json").write_text(note)
    world.fetch()
    assert world.is_fetched()
    (only,) = world.portal.of_kind(Kind.DOWNLOAD)
    assert "range" not in only.headers


def test_a_part_of_other_bytes_is_found_out_and_fetched_again(world: World) -> None:
    """A server without If-Range, or a disk that lost the last writes."""
    world.limits = dataclasses.replace(SHORT, attempts=1)
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.CUT, after=1000))
    with pytest.raises(PortalError):
        world.fetch()
    part = world.directory / f"{world.source().name}.part"
    part.write_bytes(b"PK" + bytes(998))
    world.limits = SHORT
    world.fetch()
    assert world.is_fetched()
    assert any("damaged" in line for line in world.lines)


def test_a_whole_part_is_checked_without_fetching_it(world: World) -> None:
    size = world.source().stat().st_size
    world.limits = dataclasses.replace(SHORT, attempts=1)
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.CUT, after=1000))
    with pytest.raises(PortalError):
        world.fetch()
    part = world.directory / f"{world.source().name}.part"
    part.write_bytes(world.source().read_bytes())
    world.fetch()
    assert world.is_fetched()
    assert world.portal.count(Kind.DOWNLOAD) == 1
    assert size > 1000


def test_an_ended_session_does_not_lose_what_came(world: World) -> None:
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.CUT, after=1000))
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.LOGIN_PAGE))
    world.fetch()
    assert world.is_fetched()
    assert world.portal.of_kind(Kind.DOWNLOAD)[-1].headers["range"] == "bytes=1000-"


@pytest.mark.parametrize("off", [-100, 100])
def test_a_wrong_length_once_is_made_good(world: World, off: int) -> None:
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.LENGTH, off=off))
    world.fetch()
    assert world.is_fetched()


@pytest.mark.parametrize("off", [-100, 100])
def test_a_wrong_length_is_never_taken_for_a_zip(world: World, off: int) -> None:
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.LENGTH, times=None, off=off))
    with pytest.raises(PortalError):
        world.fetch()
    assert world.is_absent()


@pytest.mark.parametrize("after", [0, 2, 5000])
@pytest.mark.parametrize("effect", [Effect.SILENCE, Effect.TRICKLE])
def test_a_download_that_dries_up_goes_on(world: World, effect: Effect, after: int) -> None:
    world.portal.add_fault(Fault(Kind.DOWNLOAD, effect, after=after, seconds=1.0))
    world.limits = dataclasses.replace(IMPATIENT, read=0.7 if effect is Effect.SILENCE else 1.5)
    world.fetch()
    assert world.is_fetched()
    if after == 5000:
        assert "range" in world.portal.of_kind(Kind.DOWNLOAD)[1].headers


def test_a_damaged_zip_is_refused(world: World) -> None:
    content = bytearray(world.source().read_bytes())
    content[len(content) // 2] ^= 0xFF
    world.source().write_bytes(content)
    with pytest.raises(PortalError, match="damaged"):
        world.fetch()
    assert world.is_absent()
    assert not list(world.directory.glob("*.part*"))


@pytest.mark.parametrize("content", [b"", b"P", b"PK", b"not a ZIP", b"PK\3\4" + bytes(3000)])
def test_what_is_no_zip_is_refused(world: World, content: bytes) -> None:
    world.source().write_bytes(content)
    with pytest.raises(PortalError):
        world.fetch()
    assert world.is_absent()


def test_a_zip_that_says_another_number_is_refused(world: World) -> None:
    other = write_extract(world.served, ExtractKey(142, "update"), {})
    other.replace(world.source())
    with pytest.raises(ExtractError, match=r"meta\.csv says 0142-update, not 0141-update"):
        world.fetch()
    assert world.is_absent()
    assert not list(world.directory.glob("*.part*"))
    assert world.portal.count(Kind.DOWNLOAD) == 1


def test_a_zip_without_meta_is_refused(world: World) -> None:
    write_extract(world.served, UPDATE, {}, members={"meta.csv": None})
    with pytest.raises(ExtractError, match=r"no meta\.csv"):
        world.fetch()
    assert world.is_absent()


def test_progress_is_told_at_most_once_a_second(world: World) -> None:
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.TRICKLE, after=10_000, seconds=0.01))
    limits = dataclasses.replace(SHORT, slowest=0.0)
    told: list[tuple[float, str]] = []

    class EnoughSeenError(Exception):
        pass

    def report(line: str) -> None:
        told.append((time.monotonic(), line))
        if len(told) == 3:
            raise EnoughSeenError

    with Portal(world.portal.url, world.username, CANARY, limits=limits) as client:
        offer = client.list_extracts()[-1]
        with pytest.raises(EnoughSeenError):
            client.download(offer, world.directory, report)
    for (before, line), (after, _) in itertools.pairwise(told):
        assert after - before >= 1.0
        assert re.fullmatch(
            r"KboOpenData_0141_\S+\.zip: [\d.]+ MB, [\d.]+ MB/s, of [\d.]+ MB, [\d,]+ s left", line
        )
    world.fetch()  # a caller that gives up halfway loses nothing
    assert "range" in world.portal.of_kind(Kind.DOWNLOAD)[-1].headers


FETCHER = """
import sys
from pathlib import Path
from kbo_pipeline.fetch.portal import Portal
url, username, password, directory = sys.argv[1:]
with Portal(url, username, password) as portal:
    portal.download(portal.list_extracts()[-1], Path(directory), print)
"""


def test_two_processes_fetch_one_good_zip(world: World) -> None:
    fault = Fault(Kind.DOWNLOAD, Effect.SILENCE, after=2000, seconds=1.0)
    world.portal.add_fault(fault)
    command = [sys.executable, "-c", FETCHER, world.portal.url, world.username, CANARY]
    both = [
        subprocess.Popen(
            [*command, str(world.directory)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=50)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert world.is_fetched()
    assert world.portal.count(Kind.DOWNLOAD) == 1


def test_a_file_that_another_holds_for_too_long_is_told(world: World) -> None:
    world.limits = dataclasses.replace(SHORT, lock_wait=0.2)
    lock = world.directory / f".{UPDATE}.lock"
    with exclusive_lock(lock), pytest.raises(StorageError, match=str(os.getpid())):
        world.fetch()
    assert any("another process" in line for line in world.lines)


def test_a_directory_that_cannot_be_written_is_told(world: World) -> None:
    world.directory.mkdir()
    (world.directory / f"{world.source().name}.part").mkdir()
    with pytest.raises(StorageError, match="free disk space"):
        world.fetch()


def test_nobody_there_is_told() -> None:
    with FaultyPortal(Path()) as portal:
        url = portal.url
    with pytest.raises(PortalError, match=r"Connection refused; 3 attempts failed"):
        Portal(url, "nobody", CANARY, limits=SHORT).list_extracts()


@pytest.mark.parametrize("url", ["", "kbo", "ftp://127.0.0.1/", "http://", "http://x:y/"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="KBO_PORTAL_URL"):
        Portal(url, "nobody", CANARY)


def test_a_certificate_of_nobody_is_refused_before_anything_is_sent() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            connection, _ = listener.accept()
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(connection, server_side=True) as c,
            ):
                received.append(c.recv(1000))

        thread = threading.Thread(target=serve)
        thread.start()
        client = Portal(f"https://127.0.0.1:{listener.getsockname()[1]}", "n", CANARY, limits=SHORT)
        with pytest.raises(PortalRefusedError, match="certificate is not trusted"):
            client.list_extracts()
        thread.join()
    assert received == []


def failures(world: World) -> Iterator[Callable[[], object]]:
    """All ways to fail that have something to do with the account."""
    yield lambda: world.client(CANARY + "x").list_extracts()
    for kind in KINDS:
        for fault in (
            Fault(kind, Effect.STATUS, times=None, status=403),
            Fault(kind, Effect.STATUS, times=None),
            Fault(kind, Effect.CUT, times=None),
            Fault(kind, Effect.REDIRECT, location="http://evil.example/"),
            Fault(kind, Effect.PAGE, times=None, body="maintenance"),
        ):
            world.portal.add_fault(fault)
            yield world.fetch


def test_the_password_stands_nowhere(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts = [repr(world.client()), str(world.client())]
    for fail in failures(world):
        with pytest.raises(KboError) as error:
            fail()
        texts.append("".join(traceback.format_exception(error.value)))
        texts.append(repr(error.value))
        assert "\n" not in str(error.value)
        world.portal.clear_faults()
    world.fetch()
    texts += [caplog.text, *world.lines]
    texts += [str(vars(r) if hasattr(r, "__dict__") else r) for r in world.portal.requests]
    texts += [f.read_bytes().decode("latin-1") for f in world.directory.iterdir()]
    for text in texts:
        assert "canary" not in text
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer) and t.is_alive()]


def test_the_stand_in_runs_as_a_program(world: World) -> None:
    command = [sys.executable, "-m", "kbo_pipeline.sample.portal", str(world.served)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip().removeprefix("KBO_PORTAL_URL=")
        with Portal(url, "demo", "demo", limits=SHORT) as client:
            assert len(client.list_extracts()) == 2
    finally:
        process.terminate()
        process.communicate(timeout=60)
