"""`kbo fetch`, and where the ZIP of an extract comes from: a real server, real files."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
import pytest

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import ExtractKey, zips_in
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.fetch.zips import fetch_zip, kept_zip, latest_key, remove_old_zips
from kbo_pipeline.operate.runs.claims import queue_tags
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.faulty_portal import Effect, Fault, FaultyPortal, Kind
from kbo_pipeline_tests.support.pipeline import Pipeline, fetch
from kbo_pipeline_tests.support.zips import pack_in_folder

FULL, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")


@dataclass
class World:
    portal: FaultyPortal
    pipeline: Pipeline
    offered: Path

    @property
    def downloads(self) -> list[str]:
        return sorted(file.name for file in (self.pipeline.directory / "downloads").glob("*"))

    def fetch(self, key: ExtractKey) -> Path:
        settings = load_settings(self.pipeline.settings)
        return fetch_zip(settings, key, lambda line: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sample = Sample(enterprises=50, seed=2)
    directory = tmp_path_factory.mktemp("made")
    sample.write_full(directory, 140)
    sample.write_update(directory, 141)
    return directory


@pytest.fixture
def world(tmp_path: Path, made: Path) -> Iterator[World]:
    offered = tmp_path / "offered"
    shutil.copytree(made, offered)
    with FaultyPortal(offered) as portal:
        account = {"KBO_USERNAME": "demo", "KBO_PASSWORD": "demo", "KBO_PORTAL_URL": portal.url}
        yield World(portal, Pipeline(tmp_path / "data", account), offered)


def test_fetch_brings_the_latest_and_imports_nothing(world: World) -> None:
    done = world.pipeline.kbo("fetch")
    (name,) = [name for name in world.downloads if name.endswith(".zip")]
    assert name.endswith("_Update.zip") and "_0141_" in name
    assert done.stdout.startswith(f"{world.pipeline.directory / 'downloads' / name}  ")
    assert not world.pipeline.is_published
    assert world.pipeline.kbo("fetch", "latest").stdout == done.stdout
    assert world.portal.count(Kind.DOWNLOAD) == 1  # it lies there, sound


def test_fetch_brings_the_extract_that_is_named(world: World) -> None:
    world.pipeline.kbo("fetch", "0140-full")
    assert any("_0140_" in name for name in world.downloads)
    assert not any("_0141_" in name for name in world.downloads)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["0139-full"], {}, "kbo: 0139-full: the portal does not list it, and no sound ZIP of it"),
        (["full"], {}, "kbo: 'full' is not an extract; expected a key such as 0141-update"),
        (["latest"], {"KBO_PASSWORD": ""}, "kbo: KBO_PASSWORD: not set, so the portal"),
        (["0140-full"], {"KBO_PASSWORD": ""}, "kbo: 0140-full: no sound ZIP of it in "),
        (["latest"], {"KBO_PASSWORD": "no"}, "kbo: POST /kbo-open-data/static/j_spring_security"),
        (["latest"], {"KBO_PORTAL_URL": "http://kbo.example"}, "kbo: KBO_PORTAL_URL: expected an"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_line(
    world: World, arguments: list[str], settings: dict[str, str], message: str
) -> None:
    pipeline = replace(world.pipeline, settings=world.pipeline.settings | settings)
    done = pipeline.kbo("fetch", *arguments, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not [name for name in world.downloads if name.endswith(".zip")]


def test_a_sound_zip_that_lies_there_is_used_without_asking_anybody(
    world: World, made: Path
) -> None:
    downloads = world.pipeline.directory / "downloads"
    downloads.mkdir(parents=True)
    (file,) = made.glob("*0140*")
    shutil.copy(file, downloads)
    assert world.fetch(FULL) == downloads / file.name
    assert world.portal.requests == []


def test_names_in_upper_case_are_names_too(world: World, made: Path) -> None:
    """Some servers and programs write them so."""
    settings = load_settings(world.pipeline.settings)
    settings.downloads_dir.mkdir(parents=True)
    for file in made.iterdir():
        shutil.copy(file, settings.downloads_dir / file.name.upper())
        shutil.move(world.offered / file.name, world.offered / file.name.upper())
    kept = settings.downloads_dir / next(made.glob("*0140*")).name.upper()
    assert world.fetch(FULL) == kept_zip(settings, FULL) == kept
    assert world.portal.requests == []
    assert {key for key, _ in zips_in(settings.downloads_dir)} == {FULL, UPDATE}
    assert len(remove_old_zips(settings, [ExtractKey(142, "full")], 4e9)) == 2
    assert zips_in(settings.downloads_dir) == []
    assert latest_key(settings) == UPDATE
    assert world.fetch(UPDATE).name.endswith("_UPDATE.ZIP")


@pytest.mark.rare
@pytest.mark.long
def test_a_zip_that_somebody_has_packed_again_and_named_is_imported_and_used_again(
    world: World, made: Path
) -> None:
    full, update = (next(world.offered.glob(pattern)) for pattern in ("*0140*", "*0141*"))
    pack_in_folder(full)
    update = update.rename(world.offered / "KboOpenData_0141_2025_10_31_Update.ZIP")
    pack_in_folder(update)
    world.pipeline.kbo("import", full, update)
    with world.pipeline.read() as connection:
        number = fetch(connection, "SELECT max(extract_number) FROM import_jobs")
    assert number == 141
    with world.pipeline.instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("import_staging_enterprise"))
    assert event is not None and event.asset_materialization is not None
    warnings = str(event.asset_materialization.metadata["warnings"].value)
    assert f"{update.name}: made on " in warnings
    assert "the file name says 2025_10_31" in warnings
    before = world.pipeline.publication()
    said = world.pipeline.kbo("rebuild", "--from-zips").stdout
    assert "0140-full to 0141-update; history begins with 0140-full" in said
    assert world.pipeline.publication() != before


def test_a_damaged_zip_that_lies_there_is_replaced_whatever_its_name(
    world: World, made: Path
) -> None:
    downloads = world.pipeline.directory / "downloads"
    downloads.mkdir(parents=True)
    (file,) = made.glob("*0140*")
    broken = downloads / "KboOpenData_0140_2025_10_Full.zip"  # the name of a monthly one
    broken.write_bytes(file.read_bytes()[:-100])
    fetched = world.fetch(FULL)
    assert fetched.read_bytes() == file.read_bytes()
    assert not broken.exists()


def test_a_damaged_zip_is_not_used_when_nobody_can_be_asked(world: World, made: Path) -> None:
    downloads = world.pipeline.directory / "downloads"
    downloads.mkdir(parents=True)
    (file,) = made.glob("*0140*")
    (downloads / file.name).write_bytes(file.read_bytes()[:-100])
    settings = load_settings({"KBO_DATA_DIR": str(world.pipeline.directory)})
    with pytest.raises(NotReadyError, match="or set KBO_USERNAME and KBO_PASSWORD"):
        fetch_zip(settings, FULL, lambda line: None)


def test_a_zip_that_breaks_off_is_brought_to_its_end(world: World, made: Path) -> None:
    world.portal.add_fault(Fault(Kind.DOWNLOAD, Effect.CUT, after=1000))
    (file,) = made.glob("*0141*")
    assert world.fetch(UPDATE).read_bytes() == file.read_bytes()
    assert world.portal.of_kind(Kind.DOWNLOAD)[1].headers["range"] == "bytes=1000-"


def test_the_queue_goes_by_number_and_the_register_before_staging() -> None:
    keys = [ExtractKey(number, "update") for number in (12000, 139, 140)]
    tags = {
        (key.number, is_staged): queue_tags(key, is_staged=is_staged)
        for key in keys
        for is_staged in (True, False)
    }
    by_priority = sorted(tags, key=lambda what: -int(tags[what]["dagster/priority"]))
    assert by_priority == [(n, True) for n in (139, 140, 12000)] + [
        (n, False) for n in (139, 140, 12000)
    ]
    assert {tag["kbo/extract"] for tag in tags.values()} == {str(key) for key in keys}
