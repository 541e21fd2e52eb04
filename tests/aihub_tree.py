"""Synthetic AI Hub trees: records, label folders, and zips as odd as the real ones."""

import json
import zipfile
from pathlib import Path
from typing import Any

NAMES = {14: "산부인과", 15: "소아청소년과", 16: "응급의학과", 17: "내과"}
OPTIONS = ["가상열", "모의병", "예시증", "가정통", "견본염"]


def row(qa_id: int = 1, **changes: Any) -> dict[str, Any]:
    """A multiple-choice object in AI Hub's form, with `changes`; a key set to None is left out."""
    question = "\n".join(
        [f"시험 문장 {qa_id}번의 답은?", *(f"{i}) {o}" for i, o in enumerate(OPTIONS, 1))]
    )
    full = {"qa_id": qa_id, "domain": 17, "q_type": 1, "question": question, "answer": "4) 가정통"}
    return {key: value for key, value in {**full, **changes}.items() if value is not None}


def short_row(qa_id: int = 1, **changes: Any) -> dict[str, Any]:
    return row(qa_id, **{"q_type": 2, "question": f"용어 {qa_id}은?", "answer": "모의병"} | changes)


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8-sig")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(value))


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")


class UnflaggedName(zipfile.ZipInfo):
    """A member whose UTF-8 name lacks the flag that says so, as in AI Hub's zips."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode(), self.flag_bits & ~0x800


def write_zip(path: Path, members: dict[str, Any], compression: int = zipfile.ZIP_STORED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in members.items():
            info = UnflaggedName(name)
            info.compress_type = compression
            archive.writestr(info, encoded(value))


def write_tree(root: Path, training: int, validation: int, space: str = " ") -> None:
    """AI Hub's folders with label zips of every department, and source-text zips beside them."""
    data = root / f"09.필수의료{space}의학지식{space}데이터" / "3.개방데이터" / "1.데이터"
    qa_id = 0
    for part, number in (("Training", training), ("Validation", validation)):
        for domain, name in NAMES.items():
            members = {}
            for _ in range(number // len(NAMES)):
                qa_id += 1
                members[f"/필수_{qa_id}.json"] = row(qa_id, domain=domain)
            file = f"{part[0]}L_{name}.zip"
            write_zip(data / part / "02.라벨링데이터" / file, members)
            write_zip(data / part / "01.원천데이터" / f"{part[0]}S_{name}.zip", {"a.json": {}})
