"""`kbo show`, `kbo find` and `kbo changes` as people and programs see them."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kbo_pipeline.cli import main
from kbo_pipeline.commands.console import extract_key, in_ranges
from kbo_pipeline.core.errors import ExtractError, KboError, NotFoundError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.text import sanitize
from kbo_pipeline_tests.support.bakery import BAKER, FOREIGN, OVEN, PERSON, SHOP, make_bakery
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, snapshot_date, write_extract

SOURCE = "Source: KBO Open Data, FPS Economy; data of 2025-05-23"


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory) -> Core:
    return make_bakery(tmp_path_factory.mktemp("bakery"))


@pytest.fixture(autouse=True)
def surroundings(bakery: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    set_register(bakery, monkeypatch)
    monkeypatch.setenv("COLUMNS", "120")


def set_register(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the settings name the published register of a data directory."""
    for name, value in core.settings.items():
        monkeypatch.setenv(name, value)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main.commands[arguments[0]], arguments[1:])


def said(*arguments: str) -> list[str]:
    """The lines that a command prints, without blanks at their end."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return [line.rstrip() for line in result.stdout.splitlines()]


def part(lines: list[str], title: str) -> list[str]:
    """The lines under a title, up to the next empty one."""
    start = lines.index(title) + 1
    return lines[start : lines.index("", start)]


def test_show_begins_with_who_it_is_and_ends_with_the_source() -> None:
    lines = said("show", f"BE{BAKER}")
    assert lines[0].startswith("╭─ Bakkerij Hemels ──")
    assert [line.strip("│ ").split(maxsplit=1) for line in lines[1:6]] == [
        ["number", "0200.065.765   VAT BE0200065765"],
        ["status", "Actief"],
        ["situation", "Opening faillissement"],
        ["form", "Aktiengesellschaft / 616"],
        ["since", "2001-02-03"],
    ]
    assert lines[-1] == f"{SOURCE} (0142-update)"


def test_show_lists_all_that_belongs_to_an_enterprise() -> None:
    lines = said("show", SHOP)
    assert part(lines, "Names") == [
        "  001  Bakkerij Hemels      2",
        "  001  Boulangerie Céleste  1",
    ]
    assert part(lines, "Addresses") == [
        "  REGO  Weg 3, 9007 Leieland",
        "  REGO  Kaai 1 box 2, 1005 Zavelbeke  struck off on 2020-01-01",
    ]
    assert part(lines, "Activities") == [
        "  NACE 2025",
        "  Hoofdactiviteit  10710  Brood           003",
        "  SECO             47240  Détail de pain  001",
        "  NACE 2008",
        "  Hoofdactiviteit  10710  Brood, zoals het in 2008 heette  001",
    ]
    assert part(lines, "Establishment units (2)") == [
        "  2.000.000.339  De Gouden Korst  Kaai 5, Hal, 1005 Zavelbeke  since 2001-02-03",
        "    47240  Détail de pain",
        f"  {OVEN}  since 2001-02-03",
    ]
    assert "Branches (0)" not in lines
    history = part(lines, "History")
    assert history[:2] == [
        "  2025-05-22  extract 141",
        "    ~ enterprise    Normale toestand → Opening faillissement",
    ]
    assert "    + denomination  2, 001, Bakkerij Hemels" in history
    assert history[-2] == "  2025-05-21  extract 140"


def test_show_goes_back_to_an_extract_and_speaks_other_languages() -> None:
    lines = said("show", FOREIGN, "--at", "0141-update", "--lang", "fr")
    assert "│ situation  Situation normale" in "\n".join(lines)
    assert part(lines, "Branches (1)") == ["  9.000.006.626  Crumbs Belgique  since 2001-02-03"]
    assert lines[-1].endswith("data of 2025-05-22 (0141-update)")


def test_texts_of_others_are_shown_and_never_obeyed() -> None:
    output = invoke("show", BAKER).output
    assert "[bold red]Bakker[/] \\x1b[2J\\x07 \\u202egnitirw \\x9b31m line" in output
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*output}
    shown = invoke("show", BAKER, "--json").output
    assert shown.isascii()
    assert "\x1b" not in shown and "\x07" not in shown


def test_hostile_names_stay_data_in_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "[link=file:///x]Evil[/link] \x1b]0;title\x07 :bomb: [/]"
    rows: dict[str, list[Row]] = {
        "enterprise": [(BAKER, "AC", *[None] * 5)],
        "denomination": [(BAKER, "2", "001", hostile)],
        "establishment": [(SHOP, None, BAKER)],
        "address": [(SHOP, "BAET", None, None, "1005", *[hostile] * 7, None)],
    }
    core = Core(tmp_path / "core")
    core.import_zip(write_extract(tmp_path, ExtractKey(140, "full"), rows))
    renamed: dict[str, list[Row]] = {"denomination": [(BAKER, "2", "001", f"{hostile}!")]}
    core.import_zip(
        write_extract(tmp_path, ExtractKey(141, "update"), renamed, {"denomination": [BAKER]})
    )
    set_register(core, monkeypatch)
    monkeypatch.setenv("COLUMNS", "600")
    for arguments in (("show", BAKER), ("find", "evil"), ("changes", "0141-update")):
        output = invoke(*arguments).output
        assert "[link=file:///x]Evil[/link] \\x1b]0;title\\x07 :bomb: [/]!" in output, arguments
        assert not {"\x1b", "\x07"} & {*output}


def test_show_counts_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = [f"2.000.000.{n:03d}" for n in range(15)]
    rows: dict[str, list[Row]] = {
        "enterprise": [(BAKER, "AC", *[None] * 5)],
        "establishment": [(unit, None, BAKER) for unit in units],
    }
    core = Core(tmp_path / "core", batch_rows=1000)
    core.import_zip(write_extract(tmp_path, ExtractKey(140, "full"), rows))
    set_register(core, monkeypatch)
    lines = part(said("show", BAKER), "Establishment units (15)")
    assert lines == [*(f"  {unit}" for unit in units[:10]), "  and 5 more: --all shows them"]
    lines = part(said("show", BAKER, "--all"), "Establishment units (15)")
    assert lines == [f"  {unit}" for unit in units]


def test_show_prints_json_for_programs() -> None:
    found = json.loads(invoke("show", BAKER, "--json").output)
    assert (found["number"], found["name"]) == (BAKER, "Bakkerij Hemels")
    assert found["history"][0]["snapshot_date"] == "2025-05-22"
    assert found["source"] == SOURCE


def test_find_lists_the_best_matches_and_says_when_there_are_more() -> None:
    header, first, *rest = said("find", "celeste")
    assert header.split() == ["number", "name", "place", "found", "as"]
    assert first.split() == [PERSON, "Céleste,", "Anna"]
    assert rest[0].split() == [
        *(BAKER, "Bakkerij", "Hemels", "9007", "Leieland"),
        *("Boulangerie", "Céleste"),
    ]
    assert rest[1:] == [SOURCE]
    assert said("find", "celeste", "--limit", "1")[2:] == [
        "there are more: --limit shows them",
        SOURCE,
    ]
    assert said("find", "korst")[1].endswith(f"De Gouden Korst ({SHOP})")
    assert said("find", "nobody at all") == ["nothing found"]


def test_find_says_whether_spelling_is_forgiven(
    tmp_path: Path, bakery: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = invoke("find", "celeste")
    assert result.stderr == (
        f"kbo: spelling is not forgiven: {bakery.database.with_suffix('.search')}: there is no"
        " search index; kbo index makes it\n"
    )
    shutil.copytree(bakery.directory, tmp_path / "core")
    set_register(replace(bakery, directory=tmp_path / "core"), monkeypatch)
    (line,) = said("index")
    assert "kbo.search: made: 0142-update, 3 documents, " in line
    assert said("index")[0].startswith(line.split(": made")[0] + ": is up to date: 0142-update, ")
    assert invoke("find", "celeste").stderr == ""
    assert said("find", "bakkerij hemelz")[0] == "nothing is written so; this is near:"
    far = said("find", "hemeltje bakker")
    assert far[0] == "nothing is near; did you mean Bakkerij Hemels?"
    assert said("find", "weg 3 leieland")[1].endswith("Weg 3, 9007 Leieland")
    (hit,) = json.loads(invoke("find", "hemels bakkerij nv", "--json").stdout)["data"]
    assert (hit["score"], hit["is_exact"], hit["matched"]) == (0.9603, True, "Bakkerij Hemels")


def test_find_prints_json_for_programs() -> None:
    found = json.loads(invoke("find", "--zipcode", "2017", "--nace", "47", "--json").output)
    assert [match["enterprise_number"] for match in found["data"]] == [PERSON]
    assert found["source"]["line"] == SOURCE
    assert found["source"]["snapshot_date"] in SOURCE
    nothing = json.loads(invoke("find", "nobody at all", "--json").stdout)
    assert nothing == {"source": found["source"], "data": []}


@pytest.mark.parametrize("command", ["changes", "status", "retry", "rollback", "show 1 --at"])
def test_a_shell_is_told_which_extracts_there_are(command: str) -> None:
    words = ["kbo", *command.split(), "014"]
    completing = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = CliRunner(env={**completing, "_KBO_COMPLETE": "bash_complete"}).invoke(main)
    assert done.output.split() == [
        f"plain,{key}" for key in ("0142-update", "0141-update", "0140-full")
    ]


def test_a_shell_is_told_nothing_where_settings_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KBO_DATA_DIRR", "x")
    completing = {"COMP_WORDS": "kbo changes 014", "COMP_CWORD": "2"}
    done = CliRunner(env={**completing, "_KBO_COMPLETE": "bash_complete"}).invoke(main)
    assert done.output.strip() == ""


def test_batches_that_follow_one_another_are_a_range() -> None:
    batches = [f"0140-full-{number:04d}" for number in (1, 2, 5, 6, 7, 8, 12)]
    assert in_ranges(["staging", *batches, "publication"]) == (
        "staging, 0140-full-0001, 0140-full-0002, 0140-full-0005 to 0140-full-0008,"
        " 0140-full-0012, publication"
    )
    assert in_ranges([]) == ""


def test_changes_are_counted_and_then_listed() -> None:
    lines = said("changes", "0141-update")
    assert [line.split() for line in lines[:7]] == [
        ["table", "kind", "entities"],
        ["enterprise", "new", "1"],
        ["enterprise", "bankruptcy", "1"],
        ["establishment", "new", "1"],
        ["establishment", "stopped", "1"],
        ["denomination", "renamed", "1"],
        [],
    ]
    assert part(lines, "enterprise: new") == ["  0200.245.711  Laatkomer"]
    words = "Normale toestand → Opening faillissement"
    assert part(lines, "enterprise: bankruptcy") == [f"  {BAKER}  Bakkerij Hemels  {words}"]
    at = lines.index("denomination: renamed")
    assert lines[at + 1] == f"  {BAKER}  Bakkerij Hemels  Boulangerie Céleste → Bakkerij Hemels"
    assert lines[-1] == "Source: KBO Open Data, FPS Economy; data of 2025-05-22"


def test_changes_list_as_many_of_a_kind_as_asked_for() -> None:
    lines = said("changes", "140", "--limit", "1")
    assert part(lines, "enterprise: new") == [
        f"  {BAKER}  Boulangerie Céleste",
        "  and 2 more: --all shows them",
    ]
    assert len(part(said("changes", "140", "--all"), "enterprise: new")) == 3
    assert not [line for line in said("changes", "140", "--limit", "0") if BAKER in line]


def test_changes_print_all_of_them_as_json() -> None:
    found = json.loads(invoke("changes", "0142-update", "--json").output)
    assert found["source"]["extract"] == "0142-update"
    data = found["data"]
    assert {"table": "branch", "kind": "stopped", "entities": 1} in data["counts"]
    assert [change["entity_number"] for change in data["changes"]] == [FOREIGN, "9.000.006.626"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["show", "0200.065.766"], "its last two digits would be 65"),
        (["show", BAKER, "--at", "7"], "7: not among the published extracts"),
        (["changes", "0143-update"], "0143-update: not among the published extracts"),
        (["find"], "nothing to look for"),
        (["find", "--nace", "XX"], "'XX': no NACE 2025 code begins so"),
        (["find", "celeste", "--zipcode", "99999"], "'99999': no address has this zipcode"),
        (["find", "celeste", "--status", "ZZ", "--json"], "'ZZ': there is no such status"),
        (["show", BAKER, "--at", "2020-01-01"], "the state of that day is not known"),
        (["changes", "2025-02-30"], "there is no such day"),
    ],
)
def test_what_is_not_there_is_an_error(arguments: list[str], why: str) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, KboError)
    assert why in str(result.exception)
    assert result.output == ""


def test_an_error_is_one_line_and_the_code_is_1() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kbo_pipeline.cli", "show", "12"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("kbo: '12' is no number") and done.stderr.count("\n") == 1


def test_plain_text_keeps_letters_and_shows_the_rest() -> None:
    assert sanitize("Ünïcödé 🚲 شركة") == "Ünïcödé 🚲 شركة"
    assert sanitize("a\tb\r\nc\u2028d") == "a b  c d"
    assert sanitize("\x1b[0m\x00\x7f\x85\u202e\ufeff") == "\\x1b[0m\\x00\\x7f \\u202e\\ufeff"
    assert sanitize("👩\u200d🍳") == "👩\u200d🍳"


def test_an_extract_may_be_named_by_its_number_or_date(
    bakery: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is published, staged, or only here as a ZIP; a key is taken without looking."""
    downloads = tmp_path / "data" / "downloads"
    downloads.mkdir(parents=True)
    monkeypatch.setenv("KBO_DATA_DIR", str(tmp_path / "data"))
    if bakery.shared is None:
        monkeypatch.setenv("KBO_DATABASE", str(bakery.database))
    for key in ("0141-full", "0150-full", "0150-update", "0151-update"):
        write_extract(downloads, ExtractKey.parse(key), {})
    (tmp_path / "data" / "rejected" / "0152-update").mkdir(parents=True)
    for text, key in (
        ("140", "0140-full"),
        ("0141", "0141-update"),  # the one that readers have
        ("2025-05-23", "0142-update"),
        ("151", "0151-update"),
        ("152", "0152-update"),  # refused: its ZIP was put aside
        (str(snapshot_date(151)), "0151-update"),
        ("0999-full", "0999-full"),
    ):
        assert str(extract_key(text)) == key
    for text in ("150", str(snapshot_date(150))):
        with pytest.raises(NotFoundError, match=f"^{text}: 0150-full and 0150-update are known"):
            extract_key(text)
    for text in ("144", "2025-01-01", "0"):
        with pytest.raises(NotFoundError, match=f"^{text}: no such extract is known here; name"):
            extract_key(text)
    for text in ("x", "", "1e3", "١٤٠", "9" * 10, "2025-02-30", "-1"):
        with pytest.raises(ExtractError):
            extract_key(text)


def test_show_of_very_many_rows_shows_the_first_and_says_how_many_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activities: list[Row] = [
        (BAKER, "001", "2025", f"{number:05d}", "MAIN") for number in range(20_000)
    ]
    codes: list[Row] = [("Nace2025", f"{n:05d}", "NL", f"Activiteit {n}") for n in range(20_000)]
    core = Core(tmp_path / "core", batch_rows=100_000)
    content = {"activity": activities, "code": codes}
    core.import_zip(write_extract(tmp_path, ExtractKey(140, "full"), content))
    set_register(core, monkeypatch)
    lines = part(said("show", BAKER), "Activities")
    assert lines[:2] == ["  NACE 2025", "  MAIN  00000  Activiteit 0   001"]
    assert len(lines) == 52
    assert lines[-1] == "  and 19,950 more: --all shows them"


def test_a_look_up_does_not_wait_for_pandas() -> None:
    code = (
        "import sys\n"
        "from kbo_pipeline.cli import main\n"
        f"main(['show', '{BAKER}'], standalone_mode=False)\n"
        "print({'numpy', 'pandas'} & {name for name, module in sys.modules.items() if module})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
