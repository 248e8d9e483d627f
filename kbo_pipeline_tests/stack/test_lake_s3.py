"""A DuckLake whose files lie in S3: against a stand-in that speaks it over HTTP on this machine.

The stand-in, moto, takes any account: who may do what is not what it shows.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import requests

from kbo_pipeline.core.environment import S3
from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.lake import compact
from kbo_pipeline.read.published import open_published
from kbo_pipeline.read.register import read_register
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.lakes import new_lake, variables
from kbo_pipeline_tests.support.pipeline import Pipeline

pytestmark = [pytest.mark.timeout(1200)]

BUCKET, PREFIX = "kbo-register", "of/belgium"
SECRET = "canary/+secret"
SAMPLE = Sample(enterprises=50, seed=5, change_shares=(0.2,))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server with an empty bucket."""
    from moto.server import ThreadedMotoServer  # here: it takes a second

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        requests.put(f"{address}/{BUCKET}", timeout=30).raise_for_status()
        yield address
    finally:
        server.stop()


def keys(server: str) -> list[str]:
    """The keys of all that lies in the bucket."""
    listed = requests.get(f"{server}/{BUCKET}", params={"list-type": "2"}, timeout=30)
    listed.raise_for_status()
    return re.findall(r"<Key>([^<]+)</Key>", listed.text)


def test_a_lake_in_s3_holds_what_a_file_holds_and_its_secret_shows_nowhere(
    server: str, tmp_path: Path
) -> None:
    lake = new_lake(
        f"s3://{BUCKET}/{PREFIX}", S3("kbo", SECRET, "canary-token", "us-east-1", server)
    )
    file = Core(tmp_path / "file", batch_rows=10_000)
    core = Core(tmp_path / "core", batch_rows=10_000, shared=lake)
    for zip_file in (SAMPLE.write_full(tmp_path, 140), SAMPLE.write_update(tmp_path, 141)):
        file.import_zip(zip_file)
        core.import_zip(zip_file)
        assert core.content_hash() == file.content_hash()
    with core.read_register() as register:
        assert [extract.number for extract in register.extracts] == [141, 140]

    before = keys(server)
    assert before and all(key.startswith(f"{PREFIX}/") for key in before)
    with duckdb.connect(":memory:") as connection:
        done = compact(connection, lake, keep_days=0)
    assert done.counts["snapshots_expired"] > 0
    assert 0 < done.files <= len(keys(server))
    assert not set(before) <= set(keys(server))  # what nobody needs any more is gone from there
    assert core.content_hash() == file.content_hash()

    with duckdb.connect(":memory:") as connection:
        lake.attach_to_read(connection, "published")
        shown = [
            connection.execute(f"FROM duckdb_{what}()").fetchall()
            for what in ("databases", "secrets", "settings")
        ]
    assert BUCKET in str(shown)

    pipeline = Pipeline(tmp_path / "data", variables(lake))
    command = ("-m", "kbo_pipeline.cli", "copy-register", "KBO_DATABASE")
    copied = pipeline.run(*command, tmp_path / "out.duckdb")
    assert copied.stdout.endswith(f": equal, content {file.content_hash()}\n")
    nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}  # where nothing listens
    refused = pipeline.run(*command, tmp_path / "no.duckdb", check=False, settings=nobody)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert refused.stderr.startswith(f"kbo: {lake}: its files do not answer (")
    assert not (tmp_path / "no.duckdb").exists()
    for text in (str(shown), repr(lake), *(p.stdout + p.stderr for p in (copied, refused))):
        assert SECRET not in text
        assert "canary-token" not in text


def test_files_that_do_not_answer_are_told_from_a_damaged_register(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = new_lake(tmp_path / "lake")
    core = Core(tmp_path / "core", batch_rows=10_000, shared=lake)
    core.import_zip(SAMPLE.write_full(tmp_path, 140))
    (tmp_path / "lake").rename(tmp_path / "away")
    # The ledger of a small lake is in its catalog until it is compacted: the rows are not.
    show = ("-m", "kbo_pipeline.cli", "show", next(SAMPLE.rows("enterprise", 140))[0])
    shown = Pipeline(tmp_path / "data", variables(lake)).run(*map(str, show), check=False)
    assert (shown.returncode, len(shown.stderr.splitlines())) == (1, 1)
    assert shown.stderr.startswith(f"kbo: {lake}: its files do not answer (")
    (tmp_path / "away").rename(tmp_path / "lake")
    with duckdb.connect(":memory:") as connection:
        compact(connection, lake, keep_days=0)
    (tmp_path / "lake").rename(tmp_path / "away")
    for name, value in core.settings.items():
        monkeypatch.setenv(name, value)
    with (
        duckdb.connect(":memory:") as connection,
        pytest.raises(StorageError, match="its files do not answer"),
        open_published(connection, core.readers),
    ):
        pass
    with pytest.raises(StorageError, match="its files do not answer"):
        read_register()
