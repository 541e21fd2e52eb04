"""What `kormed doctor` finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One check: `remedy` is empty when nothing is wrong."""

    name: str
    found: str
    remedy: str = ""
