"""Proof: what comparing with a Full found is kept for readers, as a file, and signed."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.core.errors import NotReadyError, SettingsError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.publish.verification import NAMESPACE, Verification, prove, record_proof, verify
from kbo_pipeline.read.export import write_export
from kbo_pipeline.read.published import read_proofs
from kbo_pipeline_tests.support.core import Core, ImportedOnce
from kbo_pipeline_tests.support.zips import Row, rows_for, write_extract

FULL, UPDATE, SAME = ExtractKey(140, "full"), ExtractKey(141, "update"), ExtractKey(141, "full")
NUMBERS = [f"0{n:03d}.000.097" for n in range(200, 210)]
PROOFS = """
SELECT extract_number, is_equal, rows_compared, rows_differing, full_sha256, content_hash
FROM proof
ORDER BY extract_number
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> ImportedOnce:
    """A Full, and an Update that takes one enterprise away."""
    directory = tmp_path_factory.mktemp("imported")
    rows = rows_for(NUMBERS, "one")
    deletes = {t.name: [str(row[0]) for row in rows[t.name][:1]] for t in TABLES}
    zips = {
        FULL: write_extract(directory, FULL, rows),
        UPDATE: write_extract(directory, UPDATE, {}, deletes),
    }
    return ImportedOnce(directory / "imported", zips)


@pytest.fixture
def core(tmp_path: Path, imported: ImportedOnce) -> Core:
    """A register at 141."""
    core = Core(tmp_path / "data")
    imported.into(core, FULL, UPDATE)
    return core


def same(directory: Path, **others: list[Row]) -> Path:
    """The Full of 141, some tables being others."""
    directory.mkdir(exist_ok=True)
    return write_extract(directory, SAME, {**rows_for(NUMBERS[1:], "one"), **others})


def keep(core: Core, result: Verification) -> Path:
    with duckdb.connect(":memory:") as connection:
        return record_proof(connection, core.all_settings(), result)


def compared(core: Core, zip_file: Path) -> Verification:
    return prove(core.all_settings(), 141, zip_file=zip_file)


def proofs(core: Core) -> list[tuple[object, ...]]:
    with core.read() as reader:
        return reader.execute(PROOFS).fetchall()


def source(core: Core) -> tuple[object, ...]:
    with core.read() as reader:
        row = reader.execute(
            'SELECT extract_number, proven_extract_number, proven_at IS NULL FROM "current".source'
        ).fetchone()
    assert row is not None
    return row


def test_readers_see_the_proof_at_once_and_in_later_publications(
    core: Core, tmp_path: Path
) -> None:
    assert (proofs(core), source(core)) == ([], (141, None, True))
    result = compared(core, same(tmp_path))
    expected = [(141, True, result.rows, 0, result.full_sha256, result.content_hash)]
    assert result.rows > 0
    assert (proofs(core), source(core)) == (expected, (141, 141, False))
    core.import_zip(write_extract(tmp_path, ExtractKey(142, "update"), {}, {}))
    assert (proofs(core), source(core)) == (expected, (142, 141, False))


def test_a_difference_is_kept_and_proves_nothing(core: Core, tmp_path: Path) -> None:
    compared(core, same(tmp_path))
    result = compared(core, same(tmp_path / "other", contact=[]))
    assert result.drift > 0
    last = read_proofs(core.all_settings())["0141-update"]
    assert (last.is_equal, last.rows_differing) == (False, result.drift)
    if core.shared is None:
        assert proofs(core)[0][:2] == (141, True)  # readers keep what they have
    core.import_zip(write_extract(tmp_path, ExtractKey(142, "update"), {}, {}))
    assert [row[:4] for row in proofs(core)] == [(141, False, result.rows, result.drift)]
    assert source(core) == (142, None, True)
    content = json.loads((core.all_settings().proofs_dir / "0141.json").read_text())
    assert (content["equal"], content["rows_differing"]) == (False, result.drift)
    assert content["tables"]["contact"]["only_in_register"] == result.drift


def test_a_full_has_the_hash_of_the_state_that_it_proves(core: Core, tmp_path: Path) -> None:
    """Whichever extracts have led there; and any other state has another one."""
    other = Core(tmp_path / "other")
    other.import_zip(same(tmp_path))
    hashes = {compared(one, same(tmp_path)).content_hash for one in (core, other)}
    assert len(hashes) == 1
    one_less = same(tmp_path / "less", activity=[])
    last = Core(tmp_path / "last")
    last.import_zip(one_less)
    assert compared(last, one_less).content_hash not in hashes


def test_a_rollback_takes_the_proof_of_its_extract_along(core: Core, tmp_path: Path) -> None:
    result = compared(core, same(tmp_path))
    core.rollback(UPDATE)
    assert (proofs(core), source(core)) == ([], (140, None, True))
    assert read_proofs(core.all_settings()) == {}
    with pytest.raises(NotReadyError, match="rolled back meanwhile"):
        keep(core, result)
    assert proofs(core) == []


def test_while_an_extract_is_half_applied_readers_keep_what_they_have(
    core: Core, tmp_path: Path
) -> None:
    later = ExtractKey(142, "update")
    key = core.stage(write_extract(tmp_path, later, rows_for(NUMBERS[3:9], "two"), {})).extract.key
    with core.applying(key) as (register, staged):
        register.apply(staged, staged.batches[0])
    result = compared(core, same(tmp_path))
    if core.shared is None:
        assert proofs(core) == []
    with core.applying(key) as (register, staged):
        for batch in staged.batches:
            register.apply(staged, batch)
    core.publish(key)
    assert [row[:3] for row in proofs(core)] == [(141, True, result.rows)]


def test_an_export_says_what_is_proven(core: Core, tmp_path: Path) -> None:
    settings = replace(core.all_settings(), privacy="full")
    assert write_export(settings, tmp_path / "before").to_json()["proven_at"] is None
    result = compared(core, same(tmp_path))
    write_export(settings, tmp_path / "after")
    manifest = json.loads((tmp_path / "after" / "manifest.json").read_text())
    assert manifest["proven_extract_number"] == 141
    assert manifest["proven_at"][:10] == str(result.verified_at.date())


def test_without_a_register_at_work_only_the_file_is_written(core: Core, tmp_path: Path) -> None:
    if core.shared is not None:
        pytest.skip("a shared register is always at work")
    core.register_file.unlink()
    compared(core, same(tmp_path))
    assert not core.register_file.exists()
    assert (core.all_settings().proofs_dir / "0141.json").is_file()


def key_pair(directory: Path, passphrase: str = "") -> Path:
    key = directory / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(key)], check=True
    )
    return key


def signing(core: Core, key: Path) -> Settings:
    return replace(core.all_settings(), signing_key=key)


def is_signed(file: Path, key: Path) -> bool:
    allowed = file.parent / "allowed"
    allowed.write_text(f"kbo {key.with_suffix('.pub').read_text()}")
    command = ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", "kbo", "-n", NAMESPACE]
    with file.open("rb") as content:
        done = subprocess.run(
            [*command, "-s", f"{file}.sig"], stdin=content, capture_output=True, check=False
        )
    return done.returncode == 0


def test_a_proof_is_signed_and_a_changed_one_is_not(core: Core, tmp_path: Path) -> None:
    key = key_pair(tmp_path)
    for _ in range(2):
        prove(signing(core, key), 141, zip_file=same(tmp_path))
    file = core.all_settings().proofs_dir / "0141.json"
    assert is_signed(file, key)
    file.write_text(file.read_text().replace("true", "false"))
    assert not is_signed(file, key)


@pytest.mark.parametrize("kind", ["missing", "with a passphrase"])
def test_a_key_that_cannot_sign_is_named_and_the_proof_kept(
    core: Core, tmp_path: Path, kind: str
) -> None:
    key = tmp_path / "nobody" if kind == "missing" else key_pair(tmp_path, "secret words")
    with pytest.raises(SettingsError, match=r"KBO_SIGNING_KEY: .*0141\.json is written, but not"):
        prove(signing(core, key), 141, zip_file=same(tmp_path))
    assert [row[:2] for row in proofs(core)] == [(141, True)]
    assert not (core.all_settings().proofs_dir / "0141.json.sig").exists()


def test_without_a_zip_and_an_account_it_says_what_is_missing(core: Core) -> None:
    with pytest.raises(NotReadyError, match=r"0141-full: no ZIP of it .* KBO_USERNAME"):
        prove(core.all_settings(), 141)


def test_verifying_alone_keeps_nothing(core: Core, tmp_path: Path) -> None:
    assert verify(core.all_settings(), same(tmp_path)).is_equal
    assert proofs(core) == []
