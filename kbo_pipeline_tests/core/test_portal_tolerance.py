"""Portals that do things otherwise than the one we imagine: what a browser takes, we take."""

import dataclasses
import gzip
import itertools
import random
import resource
import shutil
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from kbo_pipeline.core import disk_space
from kbo_pipeline.core.errors import ExtractError, PortalError, PortalRefusedError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.fetch import download
from kbo_pipeline.fetch.portal import Offer, Portal, offers_in
from kbo_pipeline.read.published import published_state_of
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.faulty_portal import SHORT, Effect, Fault, Kind
from kbo_pipeline_tests.support.odd_portal import (
    CODINGS,
    LANDINGS,
    LINKS,
    NAME,
    OddPortal,
    raw_server,
)
from kbo_pipeline_tests.support.zips import keys_for, rows_for, write_extract

FULL, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")
ACCOUNT = {"demo": "demo"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    noise = random.Random(1).randbytes(40_000).hex()
    write_extract(directory, UPDATE, {}, members={"noise.csv": noise})
    return directory


@pytest.fixture
def portal(made: Path, tmp_path: Path) -> Iterator[OddPortal]:
    shutil.copytree(made, tmp_path / "offered")
    with OddPortal(tmp_path / "offered", accounts=ACCOUNT) as portal:
        yield portal


def client(portal: OddPortal) -> Portal:
    return Portal(portal.url, "demo", "demo", limits=SHORT)


def fetched(portal: OddPortal, directory: Path) -> bytes:
    with client(portal) as reader:
        (offer,) = reader.list_extracts()
        assert (offer.key, offer.file_name) == (UPDATE, NAME)
        return reader.download(offer, directory, lambda line: None).read_bytes()


@pytest.mark.parametrize("landing", LANDINGS)
def test_wherever_a_login_leads_the_list_decides(
    portal: OddPortal, landing: str, made: Path, tmp_path: Path
) -> None:
    portal.landing = landing
    assert fetched(portal, tmp_path / "d") == (made / NAME).read_bytes()
    assert portal.count(Kind.LOGIN) == 1


@pytest.mark.parametrize("name", LINKS)
def test_links_are_followed_as_browsers_do(
    portal: OddPortal, name: str, made: Path, tmp_path: Path
) -> None:
    portal.link = LINKS[name]
    assert fetched(portal, tmp_path / "d") == (made / NAME).read_bytes()
    (asked,) = portal.of_kind(Kind.DOWNLOAD) or portal.of_kind(Kind.OTHER)[-1:]
    assert "jsessionid" not in asked.path
    if "lang=" in portal.link:
        assert asked.path.endswith("?lang=nl&x=1")


@pytest.mark.parametrize("coding", CODINGS)
def test_answers_may_be_compressed_though_nobody_asked(
    portal: OddPortal, coding: str, made: Path, tmp_path: Path
) -> None:
    portal.coding = coding
    assert fetched(portal, tmp_path / "d") == (made / NAME).read_bytes()
    assert not list((tmp_path / "d").glob("*.part*"))


def test_a_compressed_download_that_breaks_off_starts_over(
    portal: OddPortal, made: Path, tmp_path: Path
) -> None:
    portal.coding = "gzip"
    portal.add_fault(Fault(Kind.DOWNLOAD, Effect.CUT, after=20_000))
    assert fetched(portal, tmp_path / "d") == (made / NAME).read_bytes()
    _, second = portal.of_kind(Kind.DOWNLOAD)
    assert "range" not in second.headers


def test_a_login_form_on_every_page_is_no_refusal(portal: OddPortal, tmp_path: Path) -> None:
    portal.header = "<form action=/kbo/j_spring_security_check><input name='j_password'></form>"
    for landing in LANDINGS:
        portal.landing = landing
        fetched(portal, tmp_path / "d")
    assert portal.count(Kind.LOGIN) == len(LANDINGS)


def test_an_empty_list_is_asked_for_again_after_the_page_to_sign_up(
    portal: OddPortal, tmp_path: Path
) -> None:
    portal.needs_sign_up = True
    fetched(portal, tmp_path / "d")
    paths = [r.path.removeprefix("/kbo-open-data") for r in portal.requests]
    assert paths[:2] == ["/static/j_spring_security_check", "/affiliation/"]
    assert paths[2:5] == ["/affiliation/xml/?files", "/signup?form=&lang=en", paths[2]]
    assert portal.count(Kind.LOGIN) == 1


@pytest.mark.parametrize("times", [1, 3])
def test_a_form_that_is_sent_elsewhere_is_sent_there(
    portal: OddPortal, times: int, tmp_path: Path
) -> None:
    portal.says_again = times
    fetched(portal, tmp_path / "d")
    assert portal.count(Kind.LOGIN) == times + 1


@pytest.mark.long  # imports ten extracts
def test_ten_portals_that_do_everything_otherwise_give_ten_that_are_published(
    tmp_path: Path,
) -> None:
    core = Core(tmp_path / "data")
    numbers = ("0200.065.765", "0403.449.823")
    keys = [FULL, *(ExtractKey(140 + n, "update") for n in range(1, 10))]
    codings = itertools.cycle(("gzip", "deflate"))
    for key, landing, link in zip(keys, LANDINGS, LINKS.values(), strict=False):
        offered = tmp_path / str(key)
        offered.mkdir()
        deletes = None if key is FULL else keys_for(numbers)
        write_extract(offered, key, rows_for(numbers, str(key)), deletes)
        with OddPortal(offered, accounts=ACCOUNT) as portal:
            portal.landing, portal.link, portal.coding = landing, link, next(codings)
            with client(portal) as reader:
                (offer,) = reader.list_extracts()
                core.import_zip(reader.download(offer, tmp_path / "d", lambda line: None))
            assert portal.count(Kind.LOGIN) == 1
    published = [key for key, _ in published_state_of(core.readers).published]
    assert published == keys[::-1]


@pytest.fixture
def encrypted(made: Path, tmp_path: Path) -> Iterator[tuple[OddPortal, Portal]]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with OddPortal(made, accounts=ACCOUNT, context=context) as portal:
        reader = Portal(portal.url, "demo", "demo", limits=SHORT)
        reader._web._session.verify = str(tmp_path / "ca.pem")
        with reader:
            yield portal, reader


def test_what_is_behind_a_proxy_that_ends_tls_writes_http_and_is_asked_by_https(
    encrypted: tuple[OddPortal, Portal], made: Path, tmp_path: Path
) -> None:
    portal, reader = encrypted
    portal.is_behind_proxy, portal.says_again = True, 1
    portal.link = LINKS["absolute, fragment"]
    (offer,) = reader.list_extracts()
    assert offer.url == f"{portal.url}/affiliation/xml/files/{NAME}"
    file = reader.download(offer, tmp_path / "d", lambda line: None)
    assert file.read_bytes() == (made / NAME).read_bytes()
    assert portal.count(Kind.LOGIN) == 2


@pytest.mark.parametrize(
    "location",
    ["http://localhost/kbo-open-data/", "https://127.0.0.1:1/", "http://127.0.0.1.evil.example/"],
)
def test_nothing_else_becomes_the_same_server(
    encrypted: tuple[OddPortal, Portal], location: str
) -> None:
    portal, reader = encrypted
    portal.add_fault(Fault(Kind.LIST, Effect.REDIRECT, location=location, times=None))
    with pytest.raises(PortalRefusedError, match="redirects to "):
        reader.list_extracts()


def test_an_offer_on_another_server_is_not_fetched(portal: OddPortal, tmp_path: Path) -> None:
    offer = Offer(UPDATE, NAME, f"http://127.0.0.1:9/{NAME}")
    with client(portal) as reader, pytest.raises(PortalRefusedError, match="another server"):
        reader.download(offer, tmp_path, lambda line: None)
    assert portal.requests == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", [Kind.LIST, Kind.DOWNLOAD])
def test_a_session_that_ends_with_a_status_leads_to_a_fresh_login(
    portal: OddPortal, kind: Kind, status: int, tmp_path: Path
) -> None:
    with client(portal) as reader:
        (offer,) = reader.list_extracts()
        portal.add_fault(Fault(kind, Effect.STATUS, status=status))
        (offer,) = reader.list_extracts()
        assert reader.download(offer, tmp_path / "d", lambda line: None).is_file()
    assert portal.count(Kind.LOGIN) == 2


def test_a_session_that_ends_elsewhere_leads_to_a_fresh_login(portal: OddPortal) -> None:
    with client(portal) as reader:
        reader.list_extracts()
        portal.add_fault(Fault(Kind.LIST, Effect.REDIRECT, location="https://idp.example/"))
        assert len(reader.list_extracts()) == 1
    assert portal.count(Kind.LOGIN) == 2


def list_of(*names: str) -> bytes:
    return "".join(f"<a href='files/{name}'>x</a>" for name in names).encode()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


EARLY: dict[str, bytes] = {
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
    "early hints twice": 2 * b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n",
    "continue, then hints": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n",
    "hints, then continue": b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
    "processing": b"HTTP/1.1 102 Processing\r\nContent-Length: 7\r\n\r\n",
    "what nobody knows": b"HTTP/1.1 199 Whatever\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("name", EARLY)
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_what_announces_an_answer_shifts_none_after_it(name: str, pause: float) -> None:
    listed = [f"KboOpenData_{number:04d}_2025_10_06_Update.zip" for number in range(141, 147)]
    todo = iter(listed)

    def answers(head: bytes) -> Iterator[bytes]:
        yield EARLY[name]
        time.sleep(pause)
        if head.startswith(b"POST"):
            yield answer(b"", "Location: /kbo-open-data/", status="302 Found")
        else:
            yield answer(list_of(next(todo)) if b"?files" in head else b"Welkom")

    with raw_server(answers) as server, Portal(server.url, "a", "b", limits=SHORT) as reader:
        assert [reader.list_extracts()[0].file_name for _ in listed] == listed
    assert len(server.requests) == 2 + len(listed)


def test_announcements_without_end_end_in_time() -> None:
    def answers(head: bytes) -> Iterator[bytes]:
        while True:
            yield EARLY["early hints"]
            time.sleep(0.01)

    limits = dataclasses.replace(SHORT, total=0.3, attempts=1)
    began = time.monotonic()
    with (
        raw_server(answers) as server,
        Portal(server.url, "a", "b", limits=limits) as reader,
        pytest.raises(PortalError, match="no whole answer in time"),
    ):
        reader.list_extracts()
    assert time.monotonic() - began < 5


def serving(
    body: Callable[[], Iterator[bytes]], *headers: str
) -> Callable[[bytes], Iterator[bytes]]:
    """A portal whose only ZIP is such a body, of which no length is said."""

    def answers(head: bytes) -> Iterator[bytes]:
        if head.startswith(b"POST"):
            yield answer(b"", "Location: /kbo-open-data/", status="302 Found")
        elif b".zip" in head:
            yield "\r\n".join(["HTTP/1.1 200 OK", "Connection: close", *headers, "", ""]).encode()
            yield from body()
            raise OSError("the end")
        else:
            yield answer(list_of(NAME))

    return answers


def endless() -> Iterator[bytes]:
    yield b"PK\3\4"
    while True:
        yield bytes(1 << 20)


def endless_gzip() -> Iterator[bytes]:
    packer = zlib.compressobj(9, wbits=31)
    yield packer.compress(b"PK\3\4")
    zeros = bytes(1 << 24)
    while True:
        yield packer.compress(zeros)


@pytest.mark.parametrize(
    ("body", "headers"), [(endless, ()), (endless_gzip, ("Content-Encoding: gzip",))]
)
def test_a_download_of_no_length_ends_where_no_extract_goes_on(
    body: Callable[[], Iterator[bytes]],
    headers: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "MAX_ZIP_BYTES", 40 << 20)
    with (
        raw_server(serving(body, *headers)) as server,
        Portal(server.url, "a", "b", limits=SHORT) as reader,
        pytest.raises(ExtractError, match=r"41,943,040 at most are fetched") as error,
    ):
        reader.download(reader.list_extracts()[0], tmp_path / "d", lambda line: None)
    assert not error.value.transient
    assert [file.name for file in (tmp_path / "d").iterdir()] == [f".{UPDATE}.lock"]
    assert len([head for head in server.requests if b".zip" in head]) == 1


def test_a_length_that_no_extract_has_is_not_begun(tmp_path: Path) -> None:
    length = download.MAX_ZIP_BYTES + 1
    with (
        raw_server(serving(endless, f"Content-Length: {length}")) as server,
        Portal(server.url, "a", "b", limits=SHORT) as reader,
        pytest.raises(ExtractError, match=f"{length:,} bytes or more"),
    ):
        reader.download(reader.list_extracts()[0], tmp_path / "d", lambda line: None)
    assert [file.name for file in (tmp_path / "d").iterdir()] == [f".{UPDATE}.lock"]


def test_room_is_watched_while_a_download_of_no_length_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space, "_SPARE", shutil.disk_usage(tmp_path).free - (48 << 20))
    with (
        raw_server(serving(endless)) as server,
        Portal(server.url, "a", "b", limits=SHORT) as reader,
        pytest.raises(StorageError, match=r"are free; free \d+ MB more"),
    ):
        reader.download(reader.list_extracts()[0], tmp_path / "d", lambda line: None)
    assert [file.name for file in (tmp_path / "d").iterdir()] == [f".{UPDATE}.lock"]


def test_what_came_of_no_length_is_dropped_when_the_disk_takes_no_more(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        raw_server(serving(endless)) as server,
        Portal(server.url, "a", "b", limits=SHORT) as reader,
    ):
        (offer,) = reader.list_extracts()
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, hard))
        try:
            with pytest.raises(StorageError, match=r"\.part: File too large; free disk space"):
                reader.download(offer, tmp_path / "d", lambda line: None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in (tmp_path / "d").iterdir()] == [f".{UPDATE}.lock"]


def test_a_small_page_that_inflates_without_end_costs_neither_memory_nor_time() -> None:
    bomb = gzip.compress(gzip.compress(bytes(1 << 27), 1), 9)

    def answers(head: bytes) -> Iterator[bytes]:
        yield answer(bomb, "Content-Encoding: gzip, gzip")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with (
        raw_server(answers) as server,
        Portal(server.url, "a", "b", limits=SHORT) as reader,
        pytest.raises(PortalError, match="lists no extracts"),
    ):
        reader.list_extracts()
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("name", ["KboOpenData_0141_2025_10_06_Update.zip", "x.zip"])
def test_links_of_other_servers_and_other_names_are_no_offers(name: str) -> None:
    page = f"""<!-- <a href="files/{NAME}"> --><script>'<a href="files/{NAME}">'</script>
        <title><a href="files/{NAME}"></title><a href="https://evil.example/files/{name}">
        <a href="//evil.example/{name}"><a href="ftp://kbopub.economie.fgov.be/{name}">
        <a href="javascript:{name}"><a href="files/{name}/"><a href="files/{name}.exe">
        <a href="http://[::/{name}"><a href="?{name}"><a href="#{name}"><a href><a href=>
        <a href="https://kbopub.economie.fgov.be:444/{name}"><link href="files/{NAME}">"""
    assert offers_in(page) == []
    assert offers_in(f"{page}</script><a href=files/{NAME}") == []  # a tag that is never closed
    assert [offer.key for offer in offers_in(f"{page}<a href=files/{NAME}>")] == [UPDATE]
