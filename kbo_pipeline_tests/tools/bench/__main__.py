"""`make bench`: rounds of all importers, one after the other, then growth, then the page."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kbo_pipeline.core.settings import load_settings
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.tools.bench import growth, page
from kbo_pipeline_tests.tools.bench.importers import FILES, IMPORTERS
from kbo_pipeline_tests.tools.bench.measuring import Measurement, measure
from kbo_pipeline_tests.tools.bench.ours import Ours
from kbo_pipeline_tests.tools.bench.sample import WHOLE, Extracts, extracts

LESS_MEMORY = "1024"
ANY_LOSS = {"KBO_MAX_LOSS_PERCENT": "100", "KBO_MAX_LOSS_PERCENT_FULL": "100"}

_ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY)}
"""Of the commands that are in this package, which nobody installs."""


def main() -> None:
    """Measures what is not measured yet, and writes the page from all of it."""
    kept = load_settings().data_dir / "bench"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--enterprises", type=int, default=WHOLE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=kept / "results.jsonl")
    parser.add_argument("--write", type=Path, help="the page, such as docs/performance.md")
    options = parser.parse_args()
    made = extracts(kept, options.enterprises)
    work = kept / "work"
    options.results.parent.mkdir(parents=True, exist_ok=True)
    before = page.read(options.results)
    with options.results.open("a") as out:

        def keep(kind: str, rows: Any) -> None:
            out.write(json.dumps({"kind": kind, "rows": rows, **page.where()}) + "\n")
            out.flush()

        if "less" not in before:
            keep("less", dict(_less(work, made)))
        for number in range(len(before.get("round", [])), options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            keep("round", dict(_round(work, made)))
        for kind, registers in growth.KINDS.items():
            for number in range(len(before.get(kind, [])), options.rounds):
                print(f"growth with {kind}, round {number + 1}", flush=True)
                keep(kind, growth.measured(registers(kept, options.enterprises), work))
    shutil.rmtree(work, ignore_errors=True)
    if options.write:
        page.write(options.write, page.read(options.results), made)


def _round(work: Path, made: Extracts) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each importer once; ours with all extracts."""
    yield "bare", _of_other("bare", made.full, work)
    ours = Ours(_emptied(work), ANY_LOSS)
    yield "full", _of_import(ours, made.full)
    yield "index", _figures("index", ours.command("index"), file=ours.index_bytes)
    yield "http", _printed(ours, "http")
    yield from _beside(ours, work.with_name("beside"), made)
    with ours.served() as served:
        for name, zip_file in (("day", made.day), ("nothing", made.nothing)):
            served.wait_until_idle()
            took = served.drop(zip_file)
            served.wait_until_idle()
            yield name, _figures(name, took, phases=ours.phases(zip_file))
    yield "big", _of_import(ours, made.big)
    yield "later full", _of_import(ours, made.later_full)
    yield "verify", _figures("verify", ours.command("verify", made.later_full))
    yield "reading", _printed(ours, "reading")
    for name in IMPORTERS:
        if name != "bare":
            yield name, _of_other(name, made.full, work)
    shutil.rmtree(work)


def _less(work: Path, made: Extracts) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """With less memory; once, because it takes long, and is measured for its memory."""
    less = Ours(_emptied(work), {"KBO_MEMORY_MB": LESS_MEMORY, **ANY_LOSS})
    yield "full, less memory", _of_import(less, made.full)
    yield "day, less memory", _of_import(less, made.day)
    shutil.rmtree(work)


def _of_other(name: str, zip_file: Path, work: Path) -> Mapping[str, Any]:
    directory = _emptied(work)
    module = f"{__package__}.importers"
    command: list[str | Path] = [sys.executable, "-m", module, name, zip_file, directory]
    took = measure(command, _ENVIRONMENT, directory)
    return _figures(f"{name} of {zip_file}", took, file=(directory / FILES[name]).stat().st_size)


def _of_import(ours: Ours, zip_file: Path) -> Mapping[str, Any]:
    took = ours.import_zip(zip_file)
    size = ours.database.stat().st_size
    return _figures(zip_file.name, took, file=size, phases=ours.phases(zip_file))


def _beside(ours: Ours, directory: Path, made: Extracts) -> Iterator[tuple[str, Any]]:
    """The same Update on copies of a register, while others read it."""
    shutil.rmtree(directory, ignore_errors=True)
    copy = ours.copy_to(directory / "verified")
    with copy.served() as served, copy.beside("kbo_pipeline.cli", "verify", made.full, nice=10):
        yield "day beside", _figures("day beside verify", served.drop(made.day))
        served.wait_until_idle()
    copy = ours.copy_to(directory / "asked")
    with copy.beside(f"{__package__}.http", copy.database) as printed:
        copy.import_zip(made.day)
    yield "http beside", json.loads(printed[0])
    shutil.rmtree(directory)


def _printed(ours: Ours, module: str) -> Mapping[str, Any]:
    command: list[str | Path] = [sys.executable, "-m", f"{__package__}.{module}", ours.database]
    took = measure(command, _ENVIRONMENT, ours.directory)
    print(f"{module}: {took.seconds:.1f} s", flush=True)
    return dict(json.loads((ours.directory / "output.log").read_text()))


def _figures(name: str, took: Measurement, **more: Any) -> Mapping[str, Any]:
    print(f"{name}: {took.seconds:.1f} s, {took.peak / 1e9:.2f} GB", flush=True)
    return {**asdict(took), **more}


def _emptied(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


if __name__ == "__main__":
    main()
