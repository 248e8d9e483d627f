"""What tests share: worlds to set up, rows, ZIPs, servers, processes."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
