"""How long to wait for a web server: declared once, nothing else."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait for what. Times in seconds.

    Attributes:
        connect: for a connection.
        read: for the next byte.
        total: for a page or for the headers of a download, with the redirects on the way.
        slowest: bytes a second that a download brings at least, on average over each `window`.
        window: see `slowest`.
        attempts: how often a request is made at most, when the server fails or the line breaks.
        first_wait: before the second attempt, give or take a half.
        growth: each further wait is this many times longer.
        longest_retry_after: the longest `Retry-After` that is obeyed.
        lock_wait: for another process that fetches the same file.
    """

    connect: float = 10.0
    read: float = 60.0
    total: float = 120.0
    slowest: float = 10_000.0
    window: float = 60.0
    attempts: int = 5
    first_wait: float = 2.0
    growth: float = 3.0
    longest_retry_after: float = 900.0
    lock_wait: float = 3600.0
