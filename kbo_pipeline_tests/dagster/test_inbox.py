"""The inbox: whatever is dropped, however, is imported once or put aside with the reason."""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.text import printable
from kbo_pipeline.fetch.inbox import (
    LONGEST_WAIT_SECONDS,
    SETTLED_SECONDS,
    Inbox,
    InboxFile,
    in_number_order,
    settled,
)
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.pipeline import Pipeline, materializations
from kbo_pipeline_tests.support.processes import at_once, noise_in_logs
from kbo_pipeline_tests.support.server import Server, running_server
from kbo_pipeline_tests.support.zips import pack_in_folder, write_extract

ZIPS = int(os.environ.get("INBOX_ZIPS", "5"))
FULL, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")
HOSTILE_NAMES = [
    "with spaces and 'quotes' \"of\" both.zip",
    "línea é ü ß 日本語 العربية.ZIP",
    "two\nlines\r.zip",
    "-rf $(reboot) `id`; echo.zip",
    "%s {0} [x] *?.zip",
    "\u202egnp.zip",
    "n" * 250 + ".zip",
    os.fsdecode(b"no \xff utf-8.zip"),
]


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    inbox = Inbox(tmp_path / "inbox")
    inbox.prepare()
    return inbox


def arrived(inbox: Inbox) -> list[InboxFile]:
    return inbox.look(inbox.now())[0]


def claimed(inbox: Inbox) -> list[InboxFile]:
    return inbox.look(inbox.now())[1]


def only(found: Sequence[InboxFile]) -> InboxFile:
    (dropped,) = found
    return dropped


def damaged(zip_file: Path) -> Path:
    """Turns a byte in the middle, in what is compressed."""
    content = bytearray(zip_file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    zip_file.write_bytes(content)
    return zip_file


def test_only_visible_regular_files_that_end_in_zip_count(inbox: Inbox, tmp_path: Path) -> None:
    for name in ("a.zip", "B.ZIP", "c.Zip", "d.zip.part", "e.txt", ".f.zip", "zip"):
        (inbox.directory / name).write_text("x")
    (inbox.directory / "directory.zip").mkdir()
    (inbox.directory / "link.zip").symlink_to(inbox.directory / "a.zip")
    (inbox.directory / "broken.zip").symlink_to(tmp_path / "nowhere")
    os.mkfifo(inbox.directory / "pipe.zip")
    assert sorted(dropped.name for dropped in arrived(inbox)) == ["B.ZIP", "a.zip", "c.Zip"]


def test_nothing_is_taken_until_all_is_quiet_but_nothing_waits_for_ever(inbox: Inbox) -> None:
    def dropped(name: str, changed_at: float) -> InboxFile:
        return InboxFile(Path(name), int(changed_at * 1e9), (0, 0, 1, 0))

    now = 1_000_000.0
    quiet = dropped("quiet.zip", now - SETTLED_SECONDS)
    coming = dropped("coming.zip", now - 1)
    old = dropped("old.zip", now - LONGEST_WAIT_SECONDS)
    assert settled([], now) == []
    assert settled([quiet], now) == [quiet]
    assert settled([quiet, coming], now) == []
    assert settled([quiet, coming, old], now) == [quiet, old]
    assert settled([dropped("copied with an old date.zip", now - 1)], now) == []


def test_a_copy_that_keeps_the_old_date_has_just_arrived(inbox: Inbox) -> None:
    file = write_extract(inbox.directory, FULL, {})
    os.utime(file, (1, 1))
    assert settled(arrived(inbox), inbox.now()) == []
    assert settled(arrived(inbox), inbox.now() + SETTLED_SECONDS) != []


def test_files_are_taken_in_number_order_whatever_their_names(inbox: Inbox) -> None:
    for number, name in ((143, "a.zip"), (140, "b.zip"), (141, None), (142, "d.zip")):
        key = ExtractKey(number, "update")
        file = write_extract(inbox.directory, key, {})
        if name:
            file.rename(inbox.directory / name)
    write_extract(inbox.directory, ExtractKey(142, "full"), {}).rename(inbox.directory / "c.zip")
    (inbox.directory / "0.zip").write_text("no ZIP")
    names = [dropped.name for dropped in in_number_order(arrived(inbox))]
    assert names[0] == "b.zip"
    assert names[1].startswith("KboOpenData_0141")
    assert names[2:] == ["d.zip", "c.zip", "a.zip", "0.zip"]


def _no_zip(directory: Path) -> None:
    (directory / "x.zip").write_text("<html>Please log in</html>")


def _empty(directory: Path) -> None:
    (directory / "x.zip").touch()


def _half(directory: Path) -> None:
    file = write_extract(directory, FULL, {})
    file.rename(directory / "x.zip")
    os.truncate(directory / "x.zip", (directory / "x.zip").stat().st_size // 2)


def _crc(directory: Path) -> None:
    damaged(
        write_extract(
            directory, FULL, {}, members={"noise.csv": random.Random(1).randbytes(99_999)}
        )
    )


def _name_of_another(directory: Path) -> None:
    write_extract(directory, FULL, {}).rename(directory / "KboOpenData_0150_2025_10_06_Full.zip")


def _no_meta(directory: Path) -> None:
    write_extract(directory, FULL, {}, members={"meta.csv": None})


def _unreadable_meta(directory: Path) -> None:
    write_extract(directory, FULL, {}, members={"meta.csv": b"\xff\xfe\n"})


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        (_no_zip, "not a sound ZIP"),
        (_empty, "not a sound ZIP"),
        (_half, "not a sound ZIP"),
        (_crc, "damaged"),
        (_name_of_another, "meta.csv says 0140-full, the file name says 0150-full"),
        (_no_meta, "no meta.csv in it"),
        (_unreadable_meta, "meta.csv"),
    ],
)
def test_what_is_no_sound_extract_is_told_and_put_aside(
    inbox: Inbox, drop: Callable[[Path], None], reason: str
) -> None:
    drop(inbox.directory)
    dropped = only(arrived(inbox))
    for _ in range(2):
        with pytest.raises(ExtractError, match=reason) as raised:
            inbox.check(dropped)
    assert inbox.reject(dropped, str(raised.value), "Drop a sound one.")
    assert arrived(inbox) == []
    (zip_file,) = inbox.rejected_dir.glob("*.zip")
    lines = zip_file.with_name(f"{zip_file.name}.txt").read_text().splitlines()
    assert lines == [str(raised.value), "Drop a sound one."]
    assert lines[0].startswith(zip_file.name)


def test_a_file_is_read_once_and_again_when_it_has_changed(inbox: Inbox) -> None:
    file = write_extract(inbox.directory, FULL, {})
    dropped = only(arrived(inbox))
    assert inbox.check(dropped).key == FULL
    stat = file.stat()
    file.write_bytes(bytes(stat.st_size))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # by its times, it is the same
    assert inbox.check(dropped).key == FULL
    taken = inbox.claim(dropped)
    assert taken is not None
    assert inbox.read(taken).key == FULL
    os.utime(taken.path)
    with pytest.raises(ExtractError, match="not a sound ZIP"):
        inbox.read(only(claimed(inbox)))


def test_a_file_that_is_written_again_is_not_claimed(inbox: Inbox) -> None:
    file = write_extract(inbox.directory, FULL, {})
    dropped = only(arrived(inbox))
    inbox.check(dropped)
    with file.open("ab") as out:
        out.write(b"more")
    assert not dropped.is_unchanged()
    assert inbox.claim(dropped) is None
    assert file.exists()


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_do_no_harm(inbox: Inbox, name: str) -> None:
    write_extract(inbox.directory, FULL, {}).rename(inbox.directory / name)
    dropped = only(arrived(inbox))
    assert inbox.check(dropped).key == FULL
    taken = inbox.claim(dropped)
    assert taken is not None
    assert taken.path.parent == inbox.processing_dir
    assert taken.path.name.isprintable()
    assert inbox.reject(taken, f"{name}: no good", "Drop\nanother.")
    (text,) = inbox.rejected_dir.glob("*.txt")
    assert len(text.read_text(encoding="utf-8").splitlines()) == 2
    assert text.with_suffix("").is_file()
    assert [path for path in inbox.directory.iterdir() if path.is_file()] == []


def test_nothing_is_overwritten(inbox: Inbox) -> None:
    for number in range(4):
        (inbox.directory / "x.zip").write_text(str(number))
        dropped = only(arrived(inbox))
        if number < 2:
            assert inbox.finish(dropped, f"note {number}" if number else None)
        else:
            assert inbox.reject(dropped, f"reason {number}", "")
    (inbox.rejected_dir / "x (3).zip.txt").write_text("of somebody else")
    (inbox.directory / "x.zip").write_text("4")
    assert inbox.reject(only(arrived(inbox)), "reason 4", "")

    def content(directory: Path) -> dict[str, str]:
        return {file.name: file.read_text().strip() for file in directory.iterdir()}

    assert content(inbox.done_dir) == {
        "x.zip": "0",
        "x (2).zip": "1",
        "x (2).zip.txt": "note 1",
    }
    assert content(inbox.rejected_dir) == {
        "x.zip": "2",
        "x.zip.txt": "reason 2",
        "x (2).zip": "3",
        "x (2).zip.txt": "reason 3",
        "x (3).zip.txt": "of somebody else",
        "x (4).zip": "4",
        "x (4).zip.txt": "reason 4",
    }


def test_what_is_gone_is_nobodys_and_leaves_nothing(inbox: Inbox) -> None:
    (inbox.directory / "x.zip").write_text("x")
    dropped = only(arrived(inbox))
    dropped.path.unlink()
    assert inbox.claim(dropped) is None
    assert not inbox.finish(dropped, "note")
    assert not inbox.reject(dropped, "reason", "advice")
    files = [path.name for path in inbox.directory.rglob("*") if path.is_file()]
    assert files == [".clock"]


def test_a_name_that_a_killed_process_took_is_free_again(inbox: Inbox) -> None:
    (inbox.processing_dir / "x.zip").touch()
    assert inbox.look(inbox.now())[1] == []
    assert (inbox.processing_dir / "x.zip").exists()
    assert inbox.look(inbox.now() + 100)[1] == []
    assert not (inbox.processing_dir / "x.zip").exists()


CLAIMER = """
import json, sys, time
from pathlib import Path
from kbo_pipeline.fetch.inbox import Inbox
inbox = Inbox(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
mine = []
while arrived := inbox.look(0.0)[0]:
    for dropped in arrived:
        claimed = inbox.claim(dropped)
        if claimed is not None:
            mine.append(dropped.name)
print(json.dumps(mine))
"""


def test_two_processes_claim_each_file_once(inbox: Inbox) -> None:
    names = [f"{number:03d}.zip" for number in range(400)]
    for name in names:
        (inbox.directory / name).write_text(name)
    claims = at_once(CLAIMER, inbox.directory, environment=os.environ)
    assert sorted(claims[0] + claims[1]) == names
    assert all(claims), "one process won them all: this proves nothing"
    content = [file.read_text() for file in inbox.processing_dir.glob("*.zip")]
    assert sorted(content) == names
    assert arrived(inbox) == []


def test_printable_is_one_printable_line() -> None:
    for name in HOSTILE_NAMES:
        assert printable(name).isprintable()
        printable(name).encode()
    assert printable("plain  name é.zip") == "plain  name é.zip"


def write_zips(directory: Path, count: int) -> list[Path]:
    """A Full of few rows and the Updates after it."""
    sample = Sample(enterprises=50, seed=11, change_shares=(0.02, 0.0, 0.05), default_share=0.02)
    files = [sample.write_full(directory, 140)]
    return files + [sample.write_update(directory, 140 + n) for n in range(1, count)]


def drop(file: Path, target: Path) -> None:
    """Copies as a slow program does: in pieces, under the last name."""
    content = file.read_bytes()
    with target.open("wb") as out:
        for start in range(0, len(content), 4096):
            out.write(content[start : start + 4096])
            out.flush()
            time.sleep(0.02)


def files_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if entry.is_file())


def wait_for(ready: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


def messages(server: Server) -> list[str]:
    """What the sensor said in its ticks, the newest first."""
    found = server.query(
        "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor"
        " { sensorState { ticks(limit: 200) { status skipReason error { message } } } } } }",
        s={
            "sensorName": "inbox_sensor",
            "repositoryName": "__repository__",
            "repositoryLocationName": "kbo_pipeline",
        },
    )
    ticks = found["sensorOrError"]["sensorState"]["ticks"]
    assert not [tick for tick in ticks if tick["error"]], ticks
    return [tick["skipReason"] or "" for tick in ticks]


def stage_runs(server: Server) -> Counter[str]:
    return Counter(server.extract_of(run) for run in server.runs("stage_extract"))


@pytest.mark.long
@pytest.mark.timeout(200 + 45 * ZIPS)
@pytest.mark.rare
def test_zips_thrown_in_at_random_are_imported_in_order_and_once(tmp_path: Path) -> None:
    rng = random.Random(4)
    files = write_zips(tmp_path / "zips", ZIPS)
    files[1] = files[1].rename(files[1].with_suffix(".ZIP"))
    pack_in_folder(files[2])
    keys = ["0140-full", *(f"{140 + n:04d}-update" for n in range(1, ZIPS))]
    bad = tmp_path / "zips" / "KboOpenData_0139_2025_10_04_Update.zip"
    bad.write_text("<html>Please log in</html>")
    worse = Sample(enterprises=50, seed=11).write_update(tmp_path, 170)
    damaged(worse)
    twin = tmp_path / "a twin's copy.zip"
    twin.write_bytes(files[-1].read_bytes())
    pipeline = Pipeline(tmp_path / "data")
    pipeline.directory.mkdir(exist_ok=True)
    inbox = Inbox(pipeline.directory / "inbox")
    dropped = [*files, bad, worse, twin]
    rng.shuffle(dropped)
    with running_server(pipeline) as server:
        assert inbox.rejected_dir.is_dir()
        began = time.monotonic()
        for file in dropped:
            drop(file, inbox.directory / file.name)
            time.sleep(rng.choice((0, 0, 0.5, 2)))
        thrown = time.monotonic()

        def is_done() -> bool:
            done, rejected = (
                [name for name in files_in(directory) if name.lower().endswith(".zip")]
                for directory in (inbox.done_dir, inbox.rejected_dir)
            )
            return (len(done), len(rejected)) == (ZIPS + 1, 2)

        wait_for(
            is_done, 60 + 40 * ZIPS, lambda: (messages(server)[:3], server.runs("stage_extract"))
        )
        print(f"{ZIPS} ZIPs: thrown in {thrown - began:.0f} s, done after", end=" ")
        print(f"{time.monotonic() - began:.0f} s")
        assert stage_runs(server) == dict.fromkeys(keys, 1)
        assert all(run["status"] == "SUCCESS" for run in server.runs("stage_extract"))
        said = messages(server)
        assert all(len(line.splitlines()) <= 1 for line in said)
        with pipeline.instance() as instance:
            assert materializations(instance, "published_extract") == dict.fromkeys(keys, 1)
    with pipeline.read() as connection:
        rows = connection.execute(
            "SELECT id FROM import_jobs WHERE status = 'completed' ORDER BY completed_at"
        ).fetchall()
    assert [key for (key,) in rows] == keys
    assert files_in(inbox.directory) == []
    assert files_in(inbox.processing_dir) == [".clock"]
    (note,) = inbox.done_dir.glob("*.txt")
    assert "the same ZIP was there already" in note.read_text()
    assert {f"{file.name}.txt" for file in (bad, worse)} == {
        file.name for file in inbox.rejected_dir.glob("*.txt")
    }
    assert "not a sound ZIP" in (inbox.rejected_dir / f"{bad.name}.txt").read_text()
    assert "damaged" in (inbox.rejected_dir / f"{worse.name}.txt").read_text()
    assert noise_in_logs(pipeline.directory) == {}
