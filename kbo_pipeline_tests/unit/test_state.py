"""docs/state.md names what there is; end-to-end tests compare it with what they leave."""

import re
from pathlib import Path

import kbo_pipeline
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline_tests.support.state_page import PAGE, entries, unnamed

TEXT = PAGE.read_text(encoding="utf-8")
SOURCE = "\n".join(
    file.read_text(encoding="utf-8") for file in Path(kbo_pipeline.__file__).parent.rglob("*.py")
)
OURS = ("work/", "inbox/", "postgres/", "downloads/", "staging/", "reports", "rejected", "exports/")
OF_DEFINITIONS = {"kbo/verb", "kbo/table", "kbo/code_category"}
"""Tags of assets, which are in the code and not in a database."""


def test_every_file_of_ours_that_is_named_is_one_that_the_code_knows() -> None:
    named = [entry for entry in entries() if entry.startswith(OURS)]
    assert len(named) > 40
    for entry in named:
        for word in re.findall(r"[a-z_]+(?:-[a-z_]+)*", re.sub(r"<[^>]+>", "/", entry)):
            assert re.search(rf"""["'/.}}]{word}["'/.{{-]""", SOURCE), entry


def test_every_directory_of_the_settings_is_named(tmp_path: Path) -> None:
    settings = load_settings({}, tmp_path)
    names = [n for n in dir(Settings) if n.endswith("_dir") and n not in ("data_dir", "work_dir")]
    assert len(names) > 6
    for name in names:
        path = getattr(settings, name).relative_to(settings.data_dir)
        assert not path.parts or any(entry.startswith(str(path)) for entry in entries()), name


def test_every_key_and_tag_in_dagsters_database_is_named() -> None:
    keys = set(re.findall(r'"(kbo/[a-z_]+)/?"', SOURCE)) - OF_DEFINITIONS
    assert len(keys) > 6
    assert {key for key in keys if f"`{key}" not in TEXT} == set()


def test_a_file_that_is_not_named_is_seen(tmp_path: Path) -> None:
    for name in ("work/paused", "work/kbo-0123456789ab-x1y2", "inbox/done", "kbo.duckdb", "demo"):
        (tmp_path / name).mkdir(parents=True)
    assert unnamed(tmp_path) == []
    for name in ("work/unheard-of", "unheard-of", "postgres/pause", "work/paus"):
        (tmp_path / name).mkdir(parents=True)
    assert unnamed(tmp_path) == ["unheard-of", "postgres/pause", "work/paus", "work/unheard-of"]
