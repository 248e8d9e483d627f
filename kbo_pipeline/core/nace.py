"""NACE-BEL: the versions that KBO uses, and which divisions make up which section. No SQL.

KBO's code list has the letters of the sections, but not which codes are in them.

Sources: NACE Rev. 1.1 (Regulation (EC) 29/2002) for 2003, NACE Rev. 2 (Regulation (EC) 1893/2006)
for 2008, NACE Rev. 2.1 (Delegated Regulation (EU) 2023/137) for 2025. NACE-BEL, by Statbel, is the
same as NACE down to four digits.
"""

from collections.abc import Iterator

SECTIONS: dict[str, tuple[tuple[str, int, int], ...]] = {
    "2003": (
        *(("A", 1, 2), ("B", 5, 5), ("C", 10, 14), ("D", 15, 37), ("E", 40, 41), ("F", 45, 45)),
        *(("G", 50, 52), ("H", 55, 55), ("I", 60, 64), ("J", 65, 67), ("K", 70, 74)),
        *(("L", 75, 75), ("M", 80, 80), ("N", 85, 85), ("O", 90, 93), ("P", 95, 97)),
        ("Q", 99, 99),
    ),
    "2008": (
        *(("A", 1, 3), ("B", 5, 9), ("C", 10, 33), ("D", 35, 35), ("E", 36, 39), ("F", 41, 43)),
        *(("G", 45, 47), ("H", 49, 53), ("I", 55, 56), ("J", 58, 63), ("K", 64, 66)),
        *(("L", 68, 68), ("M", 69, 75), ("N", 77, 82), ("O", 84, 84), ("P", 85, 85)),
        *(("Q", 86, 88), ("R", 90, 93), ("S", 94, 96), ("T", 97, 98), ("U", 99, 99)),
    ),
    "2025": (
        *(("A", 1, 3), ("B", 5, 9), ("C", 10, 33), ("D", 35, 35), ("E", 36, 39), ("F", 41, 43)),
        *(("G", 46, 47), ("H", 49, 53), ("I", 55, 56), ("J", 58, 60), ("K", 61, 63)),
        *(("L", 64, 66), ("M", 68, 68), ("N", 69, 75), ("O", 77, 82), ("P", 84, 84)),
        *(("Q", 85, 85), ("R", 86, 88), ("S", 90, 93), ("T", 94, 96), ("U", 97, 98)),
        ("V", 99, 99),
    ),
}
"""By version: the letter of each section, its first and its last division."""

LEVELS: dict[int, str] = {
    1: "section",
    2: "division",
    3: "group",
    4: "class",
    5: "subclass",
    7: "detail",
}
"""The name of a level by the length of its codes; the one of 7 digits is KBO's own."""


def divisions() -> Iterator[tuple[str, str, str]]:
    """Each division: the version, its two digits, the letter of its section."""
    for version, sections in SECTIONS.items():
        for letter, first, last in sections:
            for division in range(first, last + 1):
                yield version, f"{division:02d}", letter
