"""Room on disk: what is needed is named before anything is written."""

import shutil
from pathlib import Path

import pytest

from kbo_pipeline.core.disk_space import check_space_to_import, check_space_to_keep
from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.fetch.zips import keep_zip
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.zips import announcing

FULL = ExtractKey(140, "full")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"KBO_DATA_DIR": str(tmp_path / "data")}, tmp_path)


def test_an_import_that_fits_is_let_through(settings: Settings, tmp_path: Path) -> None:
    check_space_to_import(settings, FULL, announcing(tmp_path, 1 << 20))
    check_space_to_keep("x.zip", settings.downloads_dir, 1 << 20)
    assert not settings.data_dir.exists()


def test_an_import_that_does_not_fit_is_refused_with_what_it_needs(
    settings: Settings, tmp_path: Path
) -> None:
    file = announcing(tmp_path, shutil.disk_usage(tmp_path).free)
    with pytest.raises(StorageError, match=r"^0140-full: needs about [\d,]+ MB on the disk of"):
        check_space_to_import(settings, FULL, file)
    assert not settings.data_dir.exists()


def test_a_zip_that_does_not_fit_is_refused(settings: Settings, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(StorageError) as refused:
        check_space_to_keep("x.zip", settings.downloads_dir, free + (1 << 30))
    assert str(refused.value).startswith("x.zip: needs about ")
    assert "MB more, or move KBO_DATA_DIR, then retry" in str(refused.value)


def test_keeping_a_zip_checks_first(settings: Settings, tmp_path: Path) -> None:
    file = Sample(enterprises=50).write_full(tmp_path, 140)
    kept, extract = keep_zip(settings, FULL, file)
    assert (kept.parent, extract.key) == (settings.downloads_dir, FULL)
