"""Write the sample records, in AI Hub 71875's format, from the tables of facts.

python samples/build.py            write samples/Training and samples/Validation
python samples/build.py --check    exit 1 if they differ from what the tables give
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from kormed_edge.records import DOMAINS, KOREAN, MULTIPLE_CHOICE, Q_TYPES, format_question

SAMPLES = Path(__file__).resolve().parent
OPTIONS = 5
HELD_OUT_EVERY = 9

_KEYS = {"id", "type", "question", "answer", "explanation"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--folder", type=Path, default=SAMPLES, help="where facts/ is")
    options = parser.parse_args(arguments)
    wanted = sample_files(options.folder / "facts")
    differing = differing_files(options.folder, wanted)
    if options.check:
        for path in differing:
            print(f"differs from the tables: {path.relative_to(options.folder)}")
        if differing:
            print("Remedy: python samples/build.py")
        return 1 if differing else 0
    for path in differing:
        write(path, wanted.get(path.relative_to(options.folder)))
    print(f"{len(wanted)} records, {len(differing)} files written or removed")
    return 0


def sample_files(facts: Path) -> dict[Path, bytes]:
    """What every sample file holds, by its path below the samples folder."""
    files: dict[Path, bytes] = {}
    for code, domain in DOMAINS.items():
        rows = read_rows(facts / f"{domain}.yaml")
        for index, (row, place) in enumerate(zip(rows, places(rows, domain), strict=True)):
            record = sample_record(row, code, place)
            files[_path(record["qa_id"], domain, index)] = encoded(record)
    return files


def read_rows(path: Path) -> list[dict[str, Any]]:
    """A department's facts. Raises `ValueError` that names the row."""
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    numbers = set()
    for row in rows:
        if problem := row_problem(row):
            raise ValueError(f"{path.name}: {row.get('id')}: {problem}")
        numbers.add(row_number(row))
    if len(numbers) != len(rows):
        raise ValueError(f"{path.name}: two rows have the same number")
    return list(rows)


def row_problem(row: dict[str, Any]) -> str:
    choice = row.get("type") == MULTIPLE_CHOICE
    if row.get("type") not in Q_TYPES.values():
        return f"unknown type {row.get('type')!r}"
    if set(row) != (_KEYS | {"distractors"} if choice else _KEYS):
        return f"keys {sorted(row)}"
    texts = [row["question"], row["answer"], *row.get("distractors", [])]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "an empty text, or one that is no string"
    if choice and (len(texts), len(set(texts))) != (OPTIONS + 1, OPTIONS + 1):
        return f"answer and distractors must be {OPTIONS} different texts"
    return ""


def row_number(row: dict[str, Any]) -> int:
    return int(row["id"].rsplit("-", 1)[1])


def places(rows: list[dict[str, Any]], domain: str) -> Iterator[int]:
    """Where each row's answer stands, from 1; 0 for a row without options.

    Every five multiple-choice rows use every place once, so the spread is even in any department,
    and a row added at the end moves no earlier one.
    """
    deck: list[int] = []
    block = 0
    for row in rows:
        if row["type"] != MULTIPLE_CHOICE:
            yield 0
            continue
        if not deck:
            deck = shuffled(range(1, OPTIONS + 1), f"{domain}:{block}")
            block += 1
        yield deck.pop()


def sample_record(row: dict[str, Any], domain: int, place: int) -> dict[str, Any]:
    """The record of a row, with AI Hub's keys in AI Hub's order."""
    codes = {name: code for code, name in Q_TYPES.items()}
    question, answer = row["question"], row["answer"]
    if place:
        options = shuffled(row["distractors"], row["id"])
        options.insert(place - 1, answer)
        question, answer = format_question(question, options), f"{place}) {answer}"
    return {
        "qa_id": domain * 1000 + row_number(row),
        "domain": domain,
        "q_type": codes[row["type"]],
        "question": question,
        "answer": answer,
    }


def shuffled(values: Iterable[Any], seed: str) -> list[Any]:
    # By hash and not by `random`, whose shuffle Python may change.
    return sorted(values, key=lambda value: hashlib.sha256(f"{seed}:{value}".encode()).digest())


def encoded(record: dict[str, Any]) -> bytes:
    """UTF-8 with a byte order mark, as AI Hub's files are."""
    return (json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode("utf-8-sig")


def differing_files(folder: Path, wanted: dict[Path, bytes]) -> list[Path]:
    """Files that are missing, hold something else, or belong to no row."""
    found = {
        path
        for part in ("Training", "Validation")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }
    changed = {
        folder / path
        for path, data in wanted.items()
        if folder / path not in found or (folder / path).read_bytes() != data
    }
    return sorted(changed | (found - {folder / path for path in wanted}))


def write(path: Path, data: bytes | None) -> None:
    """Write a file, or remove one that belongs to no row."""
    if data is None:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _path(qa_id: int, domain: str, index: int) -> Path:
    held_out = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    part, prefix = ("Validation", "VL_") if held_out else ("Training", "TL_")
    folder = Path(part, "02.라벨링데이터", prefix + KOREAN[domain])
    return folder / f"필수_{qa_id}.json"


if __name__ == "__main__":
    sys.exit(main())
