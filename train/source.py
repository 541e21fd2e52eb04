"""Where records come from: recognises AI Hub 71875, KoMedQA and KorMedMCQA."""

import json
from pathlib import Path

from kormed_edge.errors import DataError
from train.aihub import read_aihub
from train.kormedmcqa import HUB_ID, read_kormedmcqa
from train.reading import OnInvalid, Reading

_KNOWN = (
    "a folder or zip of AI Hub 71875, KoMedQA's JSONL, KorMedMCQA as jsonl, csv or parquet, "
    f"or the hub id {HUB_ID}"
)


def read_source(source: str | Path, on_invalid: OnInvalid = "error") -> Reading:
    """Read a source of any known kind. Raises `DataError` if it is missing or of another kind."""
    path = Path(source)
    if str(source) == HUB_ID and not path.exists():
        return read_kormedmcqa(HUB_ID, on_invalid)
    if not path.exists():
        raise _missing(path)
    if path.is_file() and _is_kormedmcqa(path):
        return read_kormedmcqa(str(path), on_invalid)
    return read_aihub(path, on_invalid)


def _missing(path: Path) -> DataError:
    place = path.parent if path.parent.exists() else Path.cwd()
    return DataError(
        f"{path} does not exist (looked for {path.absolute()})",
        _KNOWN,
        f"see what is there with: ls {place}; or try the kit on samples",
    )


def _is_kormedmcqa(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".parquet"):
        return True
    if suffix in (".zip", ".json"):
        return False
    keys = _first_keys(path) if suffix == ".jsonl" else set()
    if not keys & {"qa_id", "subject"}:
        what = f"a first line with {sorted(keys)}" if keys else "no JSON object in its first line"
        raise DataError(f"{path} has {what}", _KNOWN, "see docs/data.md")
    return "qa_id" not in keys


def _first_keys(path: Path) -> set[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            line = next((line for line in file if line.strip()), "null")
        first = json.loads(line)
    except (OSError, ValueError):
        return set()
    return set(first) if isinstance(first, dict) else set()
