"""The search index: what it forgives, of which extract it is, and that it is right or not used."""

import datetime
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.read.index import MARK, Built, build_index
from kbo_pipeline.read.register import PublishedRegister
from kbo_pipeline.read.types import Match
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.web import serving
from kbo_pipeline_tests.support.zips import Row, write_extract

FULL, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")
PEETERS, PETERS, OTHER, PERSONAL = "0200.065.765", "0200.068.636", "0200.171.970", "0201.105.843"
LATE = "0200.245.711"
UNIT = "2.000.000.339"

ROWS: dict[str, list[Row]] = {
    "enterprise": [
        (PEETERS, "AC", "000", "2", "014", None, None),
        (PETERS, "AC", "000", "2", "610", None, None),
        (OTHER, "ST", "000", "2", "610", None, None),
        (PERSONAL, "AC", "000", "1", None, None, None),
    ],
    "establishment": [(UNIT, None, PETERS)],
    "denomination": [
        (PEETERS, "2", "001", "Bakkerij Peeters"),
        (PETERS, "2", "001", "Bakkerij Peters"),
        (PETERS, "1", "003", "Boulangerie de l'Œuvre"),
        (UNIT, "2", "003", "De Gouden Haan"),
        (OTHER, "2", "001", "De Gouden Haan"),
        (PERSONAL, "0", "001", "Goossaert, Éloïse"),
    ],
    "address": [
        (PEETERS, "REGO", None, None, "9007", "Leieland", "Pays-sur-Lys", "Molenkouter",
         "Rue du Moulin", "12", None, None, None),
        (PETERS, "REGO", None, None, "1005", "Zavelbeke", "Sablonrieu", "Lindedreef",
         "Drève des Tilleuls", "7", "3", None, None),
        (UNIT, "BAET", None, None, "2017", "Scheldewaard", "Scheldewaard", "Kasseiberg",
         None, "1", None, None, datetime.date(2019, 2, 28)),
    ],
}  # fmt: skip


def settings_of(core: Core) -> Settings:
    return load_settings(core.settings, root=core.directory)


def build(core: Core) -> Built:
    return build_index(settings_of(core))


def numbers(register: PublishedRegister, text: str, **criteria: str) -> list[str]:
    return [match.enterprise_number for match in register.find(text, **criteria)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    directory = tmp_path_factory.mktemp("indexed")
    core = Core(directory / "core", batch_rows=1000)
    core.import_zip(write_extract(directory, FULL, ROWS))
    assert build(core).how == "made"
    return core


@pytest.fixture(scope="module")
def register(core: Core) -> Iterator[PublishedRegister]:
    with core.read_register() as register:
        assert register.why_not_forgiving() is None
        yield register


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bakkerij Peeters", [PEETERS, PETERS]),
        ("peters BAKKERIJ", [PETERS, PEETERS]),
        ("bakerij petrs", [PETERS, PEETERS]),
        ("bakk", [PETERS, PEETERS]),
        ("bakkerij peeters bvba", [PEETERS, PETERS]),  # another form, but exactly this name
        ("bakkerij leieland", [PEETERS, PETERS]),
        ("1005 bakkerij", [PETERS]),
        ("gouden haan", [OTHER, PETERS]),  # its own name before that of a unit
        ("boulangerie oeuvre", [PETERS]),
        ("eloise goosaert", [PERSONAL]),
        ("molenkouter 12", [PEETERS]),
        ("7 drève des tileuls sablonrieu", [PETERS]),
        ("kasseiberg 1", []),  # struck off
        ("BTW BE 0200.065.765 RPR Gent", [PEETERS]),
        ("200068636", [PETERS]),
        ("factuur van 0200 068 636 (Peters)", [PETERS]),
        ("2.000.000.339", [PETERS]),
        ("0200.362.210", []),
        ("' OR 1 = 1 --", []),
        ('name:* AND "(', []),
        ("🚲", []),
        ("zzz qqq", []),
        ("x" * 100_000, []),
    ],
)
def test_what_people_type_is_found(
    register: PublishedRegister, text: str, expected: list[str]
) -> None:
    assert numbers(register, text)[: len(expected) or 1] == expected


def test_a_match_says_how_well_and_what_has_matched(register: PublishedRegister) -> None:
    def best(text: str) -> Match:
        return register.find(text)[0]

    assert (best("bakkerij peeters").score, best("bakkerij peeters").is_exact) == (1.0, True)
    near = best("bakkerij peeterz")
    assert near.is_exact is False and 0.8 < near.score < 1.0
    assert (near.matched, near.matched_name) == ("Bakkerij Peeters", "Bakkerij Peeters")
    unit = register.find("gouden haan")[1]
    assert (unit.name, unit.matched, unit.matched_number) == (
        *("Bakkerij Peters", "De Gouden Haan", UNIT),
    )
    address = best("molenkouter 12")
    assert (address.matched, address.matched_name) == ("Molenkouter 12, 9007 Leieland", None)
    number = best(UNIT)
    assert (number.enterprise_number, number.matched, number.matched_name, number.score) == (
        *(PETERS, UNIT, None, 1.0),
    )
    assert (number.zipcode, number.municipality, number.status) == ("1005", "Zavelbeke", "AC")
    assert (address.matched_number, address.is_exact) == (PEETERS, True)


def test_all_scores_are_between_0_and_1_and_exact_ones_come_first(
    register: PublishedRegister,
) -> None:
    for text in ("bakkerij", "peters bakerij", "haan de gouden", "9007"):
        matches = register.find(text)
        assert all(0.0 < match.score <= 1.0 for match in matches)
        order = [(not match.is_exact, -match.score) for match in matches]
        assert order == sorted(order)
        assert register.find(text) == matches


def test_criteria_narrow_it_down(register: PublishedRegister) -> None:
    assert numbers(register, "bakkerij", zipcode="1005") == [PETERS]
    assert numbers(register, "bakkerij", zipcode="2017") == []  # struck off
    assert numbers(register, "gouden haan", status="ST") == [OTHER]
    assert numbers(register, PEETERS, zipcode="1005") == []
    assert numbers(register, "bakkerij", nace="10") == []


def test_the_legal_form_ranks_and_active_ones_come_first(tmp_path: Path) -> None:
    core = Core(tmp_path / "core", batch_rows=1000)
    rows: dict[str, list[Row]] = {
        "enterprise": ROWS["enterprise"][2::-1],
        "denomination": [(number, "2", "001", "Ster") for number in (OTHER, PETERS, PEETERS)],
    }
    core.import_zip(write_extract(tmp_path, FULL, rows))
    build(core)
    with core.read_register() as register:
        assert numbers(register, "ster nv") == [PEETERS, PETERS, OTHER]
        assert numbers(register, "ster srl") == [PETERS, OTHER, PEETERS]  # OTHER is stopped
        assert numbers(register, "s.p.r.l. Ster") == [PETERS, OTHER, PEETERS]


def test_an_index_that_is_right_stays(core: Core) -> None:
    mark = settings_of(core).search_dir / MARK
    before = mark.stat().st_mtime_ns
    assert build(core).how == "kept"
    assert mark.stat().st_mtime_ns == before


TOUCHED: dict[str, list[Row]] = {
    "enterprise": [(LATE, "AC", "000", "2", "014", None, None)],
    "denomination": [
        (PETERS, "2", "001", "Slagerij Petersen"),
        (LATE, "2", "001", "Laatkomer"),
    ],
    "establishment": [(UNIT, None, PEETERS)],  # has moved from one to the other
}
REMOVED = {"denomination": [PETERS], "establishment": [UNIT]}


def answers(core: Core) -> list[list[Match]]:
    texts = ("bakkerij", "peters", "gouden haan", "petersen slagerij", "laatkomer", UNIT, "9007")
    with core.read_register() as register:
        assert register.why_not_forgiving() is None
        return [register.find(text) for text in texts]


def many(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """With some others, so that an Update touches few of all."""
    others = [f"0300.{n // 1000:03d}.{n % 1000:03d}" for n in range(50)]
    return rows | {
        "enterprise": rows["enterprise"] + [(n, "AC", "000", "2", *[None] * 3) for n in others],
        "denomination": rows["denomination"] + [(n, "2", "001", f"Nummer {n}") for n in others],
    }


def test_an_update_writes_what_it_touched_and_the_result_is_the_same(tmp_path: Path) -> None:
    core = Core(tmp_path / "core", batch_rows=1000)
    core.import_zip(write_extract(tmp_path, FULL, many(ROWS)))
    build(core)
    update = write_extract(tmp_path, UPDATE, TOUCHED, REMOVED)
    core.import_zip(update)
    with core.read_register() as register:
        why = register.why_not_forgiving()
        assert why is not None and "is of 0140-full, not 0141-update" in why
        assert numbers(register, "laatkomer") == [LATE]  # by SQL
    built = build(core)
    assert (built.how, built.enterprises) == ("updated", 3)
    updated = answers(core)
    assert updated[2][1].enterprise_number == PEETERS
    assert [match.name for match in updated[3]][:1] == ["Slagerij Petersen"]
    (settings_of(core).search_dir / MARK).unlink()
    again = build(core)
    assert (again.how, again.documents) == ("made", built.documents)
    assert answers(core) == updated
    core.rollback(UPDATE)
    with core.read_register() as register:
        assert "is of 0141-update" in (register.why_not_forgiving() or "")
        assert numbers(register, "laatkomer") == []
    core.import_zip(update)
    with core.read_register() as register:
        assert "of another publication" in (register.why_not_forgiving() or "")
    assert build(core).how == "made"
    assert answers(core) == updated


@pytest.fixture
def own(core: Core, tmp_path: Path) -> Core:
    """A copy, to be changed."""
    shutil.copytree(core.directory, tmp_path / "core")
    return replace(core, directory=tmp_path / "core")


def harm(directory: Path, how: str) -> None:
    mark = directory / MARK
    content = json.loads(mark.read_text())
    largest = max((p for p in directory.iterdir() if p != mark), key=lambda p: p.stat().st_size)
    if how == "cut":
        os.truncate(largest, largest.stat().st_size // 2)
    elif how == "gone":
        largest.unlink()
    elif how == "mark":
        mark.write_text("{")
    elif how == "list":
        mark.write_text("[]")
    elif how == "version":
        mark.write_text(json.dumps(content | {"format": "kbo_pipeline search 0"}))
    elif how == "foreign":
        (directory / "meta.json").write_text("{}" + " " * (content["files"]["meta.json"][0] - 2))
    else:
        raise AssertionError(how)


@pytest.mark.parametrize("how", ["cut", "gone", "mark", "list", "version", "foreign"])
def test_what_is_damaged_is_not_used_and_made_again(own: Core, how: str) -> None:
    directory = settings_of(own).search_dir
    harm(directory, how)
    with own.read_register() as register:
        why = register.why_not_forgiving()
        assert why is not None and str(directory) in why and "\n" not in why
        assert numbers(register, "bakkerij peters") == [PETERS]  # by SQL
        assert numbers(register, "bakkerij petrs") == []
        with pytest.raises(NotReadyError):
            register.match([])
        assert build(own).how == "made"
        assert register.why_not_forgiving() is None  # the same register sees it
        assert numbers(register, "bakkerij petrs")[0] == PETERS


def test_changed_bytes_are_found_by_the_next_run(own: Core) -> None:
    file = max(settings_of(own).search_dir.glob("*.store"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(bytes(content))
    assert build(own).how == "made"
    assert build(own).how == "kept"


def test_what_a_killed_process_left_goes(own: Core) -> None:
    directory = settings_of(own).search_dir
    leftover = directory.with_name(f".{directory.name}.unfinished")
    leftover.mkdir()
    (leftover / "half.store").write_bytes(b"x")
    (directory / MARK).unlink()
    assert build(own).how == "made"
    assert not leftover.exists()


def test_an_open_register_keeps_its_index_while_another_takes_its_place(own: Core) -> None:
    with own.read_register() as register:
        before = register.find("bakkerij peters")
        own.import_zip(write_extract(own.directory, UPDATE, TOUCHED, REMOVED))
        build(own)
        assert register.find("bakkerij peters") == before
    with own.read_register() as register:
        assert register.find("slagerij petersen")[0].enterprise_number == PETERS


def test_answers_over_http_forgive_once_the_index_is_there(own: Core) -> None:
    (settings_of(own).search_dir / MARK).unlink()
    path = "v1/find?q=bakkerij%20petrs"
    with serving(own) as web:
        first = web.get(path)
        assert first.json()["data"] == []
        build(own)
        again = web.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert again.status_code == 200
        hit = again.json()["data"][0]
        assert (hit["enterprise_number"], hit["matched"], hit["is_exact"]) == (
            *(PETERS, "Bakkerij Peters", False),
        )
        assert web.get(path, headers={"If-None-Match": again.headers["etag"]}).status_code == 304


def test_natural_persons_are_not_in_it(own: Core) -> None:
    private = replace(own, privacy="legal-persons")
    private.import_zip(write_extract(own.directory, UPDATE, TOUCHED, REMOVED))
    with private.read_register() as register:
        assert "made with KBO_PRIVACY=full" in (register.why_not_forgiving() or "")
        assert numbers(register, "goossaert") == []
    assert build(private).mark.privacy == "legal-persons"
    with private.read_register() as register:
        assert register.why_not_forgiving() is None
        assert numbers(register, "goossaert") == numbers(register, PERSONAL) == []
        assert numbers(register, "slagerij petersen") == [PETERS]
    files = [p for p in settings_of(private).search_dir.iterdir() if p.suffix != ".lock"]
    assert not [p for p in files if b"goossaert" in p.read_bytes().lower()]
