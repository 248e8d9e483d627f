"""docs/decisions: each record has its parts and is in the index, which has no others."""

import re
from datetime import date
from pathlib import Path

import pytest

from kbo_pipeline_tests.support import REPOSITORY

DECISIONS = REPOSITORY / "docs" / "decisions"
HEADINGS = ["Context", "Decision", "Consequence"]


def faults(directory: Path) -> list[str]:
    """What is wrong with the records of a directory and its index."""
    records = sorted(file for file in directory.glob("*.md") if file.name != "README.md")
    found = [f"{r.name}: {fault}" for n, r in enumerate(records, 1) for fault in faults_of(r, n)]
    index = (directory / "README.md").read_text(encoding="utf-8")
    entries = re.findall(r"^- \[\d{4}\]\(([^)]+)\): (.+) \((\S+)\)$", index, re.MULTILINE)
    expected = [(record.name, *title_and_date(record)) for record in records]
    found += [f"README.md: lacks {entry}" for entry in expected if entry not in entries]
    found += [f"README.md: {entry} is no record" for entry in entries if entry not in expected]
    return found


def title_and_date(record: Path) -> tuple[str, str]:
    """The title and the date of a record, empty where it has none."""
    text = record.read_text(encoding="utf-8")
    title = re.match(r"# \d{4}\. (.+)\n", text)
    day = re.search(r"^Date: (\S+)$", text, re.MULTILINE)
    return title[1] if title else "", day[1] if day else ""


def faults_of(record: Path, number: int) -> list[str]:
    """What is wrong with one record, which should have this number."""
    text = record.read_text(encoding="utf-8")
    found = []
    if not record.name.startswith(f"{number:04d}-") or not text.startswith(f"# {number:04d}. "):
        found.append(f"is not number {number}")
    sections = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    if sections[1::2] != HEADINGS:
        found.append(f"has the headings {sections[1::2]}")
    if not all(section.strip() for section in sections):
        found.append("has an empty section")
    try:
        date.fromisoformat(title_and_date(record)[1])
    except ValueError:
        found.append("has no date")
    return found


def test_each_decision_has_its_parts_and_is_in_the_index() -> None:
    assert faults(DECISIONS) == []
    assert len(list(DECISIONS.glob("0*.md"))) > 40


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("0002-second.md", "Date: 2026-11-22", "Date: yesterday", "has no date"),
        ("0002-second.md", "## Consequence", "## Outcome", "has the headings"),
        ("0002-second.md", "Because.", "", "has an empty section"),
        ("0002-second.md", "# 0002.", "# 0003.", "is not number 2"),
        ("README.md", "(0002-second.md)", "(0003-third.md)", "README.md: lacks"),
        ("README.md", "(0001-first.md)", "(0003-third.md)", "is no record"),
    ],
)
def test_what_is_wrong_with_a_record_is_seen(
    tmp_path: Path, file: str, old: str, new: str, fault: str
) -> None:
    index = []
    for number, name in enumerate(("first", "second"), 1):
        parts = "\n".join(f"## {heading}\n\nBecause.\n" for heading in HEADINGS)
        record = tmp_path / f"{number:04d}-{name}.md"
        record.write_text(f"# {number:04d}. The {name}\n\nDate: 2026-11-22\n\n{parts}")
        index.append(f"- [{number:04d}]({record.name}): The {name} (2026-11-22)")
    (tmp_path / "README.md").write_text("\n".join(index) + "\n")
    assert faults(tmp_path) == []
    changed = tmp_path / file
    changed.write_text(changed.read_text().replace(old, new))
    assert fault in "; ".join(faults(tmp_path))
