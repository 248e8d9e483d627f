"""Fetch: an extract's ZIP comes into the downloads directory, from wherever it is."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kbo_pipeline.core.disk_space import check_space_to_keep
from kbo_pipeline.core.errors import ExtractError, NotReadyError, SettingsError
from kbo_pipeline.core.extracts import Extract, ExtractKey, key_in_file_name, zips_in
from kbo_pipeline.core.files import exclusive_lock, replace_atomically, zip_lock
from kbo_pipeline.core.progress import ProgressReport, not_reported
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.fetch.archive import damage, read_extract

if TYPE_CHECKING:
    from kbo_pipeline.fetch.http import Limits
    from kbo_pipeline.fetch.portal import Portal


def open_portal(settings: Settings, limits: "Limits | None" = None) -> "Portal":
    """The portal of these settings; nothing is asked yet.

    Raises:
        SettingsError: no account is set, or the address is none.
    """
    if settings.username is None or settings.password is None:
        raise SettingsError(
            f"{settings.account_not_set}: not set, so the portal cannot be asked; set both, or put"
            f" ZIPs into {settings.inbox_dir}"
        )
    from kbo_pipeline.fetch.portal import Portal

    return Portal(
        settings.portal_url,
        settings.username,
        settings.password,
        memory=_refusals_file(settings),
        limits=limits,
    )


def next_login_at(settings: Settings) -> float | None:
    """When the account may be tried again, in seconds of the epoch; None when it may be now.

    That is at once when the portal has not refused it, and when another account is set meanwhile.

    Raises:
        StorageError: the file that remembers it cannot be read.
    """
    from kbo_pipeline.fetch.portal import Refusals

    account = (settings.portal_url, settings.username or "", settings.password or "")
    return Refusals(_refusals_file(settings), *account).next_at()


def _refusals_file(settings: Settings) -> Path:
    return settings.work_dir / "portal-refused.json"


def fetch_zip(
    settings: Settings,
    key: ExtractKey,
    report: Callable[[str], None],
    report_progress: ProgressReport = not_reported,
) -> Path:
    """The ZIP of an extract in the downloads directory: the sound one there, or a fetched one.

    Raises:
        NotReadyError: it does not lie here, and the portal does not list it or cannot be asked.
        PortalError: the portal does not give it.
        ExtractError: what it gives is another extract.
        StorageError: it cannot be written.
    """
    for file in kept_zips(settings, key):
        problem = damage(file)
        if problem is None and read_extract(file).key == key:
            return file
        report(f"{file.name}: the file that is there is not used ({problem or 'another extract'})")
    if not settings.has_account:
        raise NotReadyError(
            f"{key}: no sound ZIP of it in {settings.downloads_dir}; put one there, use kbo import,"
            " or set KBO_USERNAME and KBO_PASSWORD to have it fetched"
        )
    with open_portal(settings) as portal:
        file = _download(portal, key, settings.downloads_dir, report, report_progress)
    _remove_others(settings, key, file)
    return file


def _download(
    portal: "Portal",
    key: ExtractKey,
    directory: Path,
    report: Callable[[str], None],
    report_progress: ProgressReport,
) -> Path:
    offer = next((offer for offer in portal.list_extracts() if offer.key == key), None)
    if offer is None:
        raise NotReadyError(
            f"{key}: the portal does not list it, and no sound ZIP of it lies in downloads; put one"
            " there, or use kbo import"
        )
    return portal.download(offer, directory, report, report_progress)


def latest_key(settings: Settings) -> ExtractKey:
    """The newest extract that the portal lists; the Full, if there are both of that number.

    Raises:
        SettingsError: no account is set.
        PortalError: the portal lists nothing.
    """
    with open_portal(settings) as portal:
        return portal.list_extracts()[-1].key


def kept_zips(settings: Settings, key: ExtractKey) -> list[Path]:
    """The files of an extract in the downloads directory, by name; more than one is an accident."""
    return [file for kept_key, file in zips_in(settings.downloads_dir) if kept_key == key]


def kept_zip(settings: Settings, key: ExtractKey) -> Path:
    """The ZIP of an extract in the downloads directory.

    Raises:
        NotReadyError: there is none.
        ExtractError: there are several.
    """
    files = kept_zips(settings, key)
    if not files:
        raise NotReadyError(
            f"{key}: no ZIP of it in {settings.downloads_dir}; put it there or use kbo import"
        )
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ExtractError(f"{key}: several ZIPs of it: {names}; keep the one that is right")
    return files[0]


@contextmanager
def full_to_compare(
    settings: Settings,
    number: int,
    report: Callable[[str], None] = lambda line: None,
    report_progress: ProgressReport = not_reported,
) -> Iterator[Path]:
    """The Full of a number: the one in the downloads directory, or a fetched one, gone afterwards.

    Raises:
        NotReadyError: it is not there, and the portal does not list it or cannot be asked.
        PortalError: the portal does not give it.
        StorageError: it cannot be written.
    """
    key = ExtractKey(number, "full")
    if kept_zips(settings, key):
        yield kept_zip(settings, key)
        return
    if not settings.has_account:
        raise NotReadyError(
            f"{key}: no ZIP of it in {settings.downloads_dir}, and {settings.account_not_set} not"
            " set; put it there, or name its file: kbo verify FULL_ZIP"
        )
    aside = settings.work_dir / "proving"  # where nothing takes it for one to import
    try:
        with open_portal(settings) as portal:
            yield _download(portal, key, aside, report, report_progress)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refused_zip(settings: Settings, key: ExtractKey) -> Path | None:
    """The ZIP of an extract that was refused and lies aside; None where one is kept, or none."""
    aside = settings.rejected_dir / str(key)
    if kept_zips(settings, key) or not aside.is_dir():
        return None
    return next((f for f in sorted(aside.iterdir()) if f.suffix.lower() == ".zip"), None)


def keep_zip(settings: Settings, key: ExtractKey, source: Path) -> tuple[Path, Extract]:
    """Copies a ZIP into the downloads directory, in place of others of the same extract.

    Raises:
        ExtractError: the ZIP is another extract, or none.
        StorageError: another process brings the same extract, or there is no room for it.
    """
    extract = read_extract(source)
    if extract.key != key:
        raise ExtractError(f"{source.name}: it is {extract.key}, not {key}; name the right file")
    if source.parent == settings.downloads_dir:
        return source, extract
    name = extract.source_file if key_in_file_name(extract.source_file) else extract.file_name
    target = settings.downloads_dir / name
    with exclusive_lock(zip_lock(settings.downloads_dir, key), timeout=60.0):
        check_space_to_keep(source.name, settings.downloads_dir, source.stat().st_size)
        with replace_atomically(target) as temporary:
            try:
                shutil.copyfile(source, temporary)
            except FileNotFoundError:
                raise ExtractError(f"{source}: moved away meanwhile; name it again") from None
        _remove_others(settings, key, target)
    return target, read_extract(target)


def remove_old_zips(settings: Settings, published: Sequence[ExtractKey], now: float) -> list[Path]:
    """Removes kept ZIPs that are older than `KBO_KEEP_ZIPS_DAYS`; returns which.

    Never those from which the register could be made again: the newest published Full and all
    extracts above it. Files that are not named as KBO names them stay.
    """
    full = max((key.number for key in published if key.type == "full"), default=None)
    if full is None:
        return []
    removed = []
    for key, file in zips_in(settings.downloads_dir):
        is_old = now - file.stat().st_mtime > settings.keep_zips_days * 86_400
        if is_old and key.number < full:
            file.unlink(missing_ok=True)
            removed.append(file)
    return removed


def drop_zip(settings: Settings, extract: Extract) -> None:
    """Removes a ZIP that cannot be imported from the downloads directory; other files stay.

    Raises:
        StorageError: another process brings the same extract.
    """
    with exclusive_lock(zip_lock(settings.downloads_dir, extract.key)):
        for file in kept_zips(settings, extract.key):
            with suppress(ExtractError):
                if read_extract(file).sha256 == extract.sha256:
                    file.unlink()


def _remove_others(settings: Settings, key: ExtractKey, kept: Path) -> None:
    for other in kept_zips(settings, key):
        if other != kept:
            other.unlink()
