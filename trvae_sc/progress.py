"""Lines on how long work will take and took; shown where a progress bar is."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm


def say(line: str) -> None:
    """Print a line above the progress bars."""
    tqdm.write(line, file=sys.stderr)


def duration(seconds: float) -> str:
    """Return a time as one says it."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
