"""The asset `extract_zip`: an extract's ZIP in the downloads directory."""

import shutil
from pathlib import Path

import dagster as dg

from kbo_pipeline.defs.partitions import kbo_extracts
from kbo_pipeline.defs.resources import permanent_errors_not_retried
from kbo_pipeline.errors import ExtractError, NotReadyError
from kbo_pipeline.extracts import Extract, ExtractKey, key_in_file_name, read_extract
from kbo_pipeline.files import replace_atomically
from kbo_pipeline.locks import exclusive_lock
from kbo_pipeline.settings import Settings, load_settings


class ExtractZipConfig(dg.Config):
    """Where the ZIP comes from.

    Attributes:
        source_file: path of a ZIP; None: the one that lies in the downloads directory.
    """

    source_file: str | None = None


@dg.asset(
    partitions_def=kbo_extracts,
    group_name="download",
    kinds={"file"},
    retry_policy=dg.RetryPolicy(max_retries=2, delay=5, jitter=dg.Jitter.PLUS_MINUS),
)
def extract_zip(
    context: dg.AssetExecutionContext, config: ExtractZipConfig
) -> dg.MaterializeResult[None]:
    """One extract of KBO Open Data as the government publishes it: a ZIP of CSV files.

    A Full holds the whole register, an Update what changed since the extract before. The ZIP is
    kept, so that the register can be made again from it.
    """
    with permanent_errors_not_retried(context):
        settings = load_settings()
        key = ExtractKey.parse(context.partition_key)
        source = Path(config.source_file) if config.source_file else None
        file, extract = keep_zip(settings, key, source)
        context.log.info(f"{key}: {file.name}, {file.stat().st_size / 1e6:,.1f} MB")
        return dg.MaterializeResult(
            metadata={
                "file": dg.MetadataValue.path(str(file)),
                "sha256": extract.sha256,
                "bytes": file.stat().st_size,
                "snapshot_date": str(extract.snapshot_date),
                "extract_timestamp": str(extract.timestamp),
                "version": extract.version,
            },
            data_version=dg.DataVersion(extract.sha256),
        )


def kept_zip(settings: Settings, key: ExtractKey) -> Path:
    """The ZIP of an extract in the downloads directory.

    Raises:
        NotReadyError: there is none.
        ExtractError: there are several.
    """
    files = [f for f in settings.downloads_dir.glob("*.zip") if key_in_file_name(f.name) == key]
    if not files:
        raise NotReadyError(
            f"{key}: no ZIP of it in {settings.downloads_dir}; put it there or use kbo import"
        )
    if len(files) > 1:
        names = ", ".join(sorted(file.name for file in files))
        raise ExtractError(f"{key}: several ZIPs of it: {names}; keep the one that is right")
    return files[0]


def keep_zip(settings: Settings, key: ExtractKey, source: Path | None) -> tuple[Path, Extract]:
    """Copies a ZIP into the downloads directory, or reads the one that is there.

    Raises:
        ExtractError: the ZIP is another extract, or none.
        NotReadyError: no source is given and none is there.
    """
    file = kept_zip(settings, key) if source is None else source
    extract = read_extract(file)
    if extract.key != key:
        raise ExtractError(f"{file.name}: it is {extract.key}, not {key}; name the right file")
    if file.parent == settings.downloads_dir:
        return file, extract
    with exclusive_lock(settings.work_dir / "downloads.lock", timeout=60.0):
        name = extract.source_file if key_in_file_name(extract.source_file) else extract.file_name
        target = settings.downloads_dir / name
        with replace_atomically(target) as temporary:
            shutil.copyfile(file, temporary)
        for other in settings.downloads_dir.glob("*.zip"):
            if other != target and key_in_file_name(other.name) == key:
                other.unlink()
    return target, read_extract(target)
