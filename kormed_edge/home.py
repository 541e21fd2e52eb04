"""The one folder for what the kit fetches or makes once and keeps: `$KORMED_HOME`."""

import os
from pathlib import Path


def home() -> Path:
    """`$KORMED_HOME`, or `~/.cache/kormed` when it is not set."""
    return Path(os.environ.get("KORMED_HOME") or "~/.cache/kormed").expanduser()
