"""A finished run as small as one can be, and a bundle of it; all texts are made up."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from kormed_edge.bundle import GateResult, parse_sums
from kormed_edge.bundle_build import Order, create_bundle
from kormed_edge.bundle_delta import create_delta
from kormed_edge.bundle_signing import make_keys, read_private_key
from kormed_edge.calibration import Calibration
from kormed_edge.manifest import BaseModelId
from kormed_edge.runs import open_stage

PASSED = GateResult(reference="adapter", candidate="gguf:Q4_K_M", outcome="PASS")
UNDECIDED = PASSED.model_copy(update={"outcome": "INCONCLUSIVE", "reasons": ("too few",)})
SIGNED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GGUF = b"GGUF" + bytes(range(256)) * 40
ADAPTER = b"GGUF adapter"
REFERENCE = "kormed-edge:0.1.0"


def item(number: int, domain: str = "internal_medicine", output: str = "1) 휴식") -> dict[str, Any]:
    return {
        "qa_id": f"17{number:03}", "domain": domain, "q_type": "multiple_choice",
        "question": f"지어낸 질문 {number}번의 답은?\n1) 휴식\n2) 운동", "answer": "1) 휴식",
        "output": output, "finish_reason": "stop", "n_tokens": 3, "seconds": 0.1,
    }  # fmt: skip


def jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def stage(
    run: Path, name: str, files: dict[str, bytes], inputs: tuple[str, ...] = (),
    revision: str | None = None, **settings: Any,
) -> None:  # fmt: skip
    with open_stage(run, name, settings, inputs=inputs) as draft:
        assert draft is not None
        draft.base = BaseModelId(
            id="maker/base", revision=revision, path="/secret/base", license="apache-2.0"
        )
        for file, content in files.items():
            (draft.folder / file).write_bytes(content)


def make_run(
    run: Path, source: str = "samples", domain: str = "internal_medicine", base: str | None = None,
    under: str | None = None,
) -> Path:  # fmt: skip
    """`base` is the revision of the model that was trained on, `under` the SHA-256 of the one that
    was evaluated with the adapter over it, calibrated too."""
    rows = [item(number, domain) for number in range(3)]
    fields = ("qa_id", "domain", "q_type", "question", "answer")
    records = jsonl({key: row[key] for key in fields} for row in rows)
    stage(run, "data", {"test.jsonl": records}, data={"source": source})
    stage(run, "adapter", {"adapter_model.safetensors": b"weights"}, ("data",))
    models = {"Q4_K_M": f"{run.name}-Q4_K_M.gguf"}
    exported = {models["Q4_K_M"]: GGUF, "adapter.gguf": ADAPTER}
    stage(run, "gguf", exported, ("adapter",), base, models=models)
    answers = {name: jsonl(rows) for name in ("adapter.jsonl", "gguf-Q4_K_M.jsonl")}
    facts: dict[str, Any] = {}
    if under is not None:
        facts = {"under": {"lora:Q4_K_M": under}}
        answers["lora-Q4_K_M.jsonl"] = jsonl(rows)
        known = Calibration(
            model_sha256=under, adapter_sha256=sha256(ADAPTER).hexdigest(), options=None, text=None,
            threshold=0.5, fit_version="1",
        )  # fmt: skip
        answers["calibration-lora-Q4_K_M.json"] = known.model_dump_json().encode()
    stage(run, "eval", answers, ("data", "gguf"), eval={}, **facts)
    stage(run, "report", {"index.html": b"<p>report"}, ("eval",))
    return run


def make_image(path: Path, tags: tuple[str, ...] = (REFERENCE,)) -> Path:
    content = json.dumps([{"Config": "c.json", "RepoTags": tags, "Layers": []}]).encode()
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return path


def install_update(update: Path, base: Path) -> Path:
    """What install.sh makes of an update's folder."""
    for name in parse_sums((update / "FROM_BASE").read_bytes()):
        (update / name).parent.mkdir(exist_ok=True)
        (update / name).hardlink_to(base / name)
    (update / "INSTALLED").touch()
    return update


class Workshop:
    """A run, an image and keys in a folder, and the making of bundles from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "runs" / "demo"
        self.image = folder / "image.tar"
        self.private, self.public = folder / "kormed.key", folder / "kormed.pub"
        self.pins = folder / "pins.txt"

    def fill(self) -> "Workshop":
        make_run(self.run)
        make_image(self.image)
        make_keys(self.private, self.public)
        self.pins.write_text("# the edge\nclick==8.5.1\nnot_installed==1.0\n")
        return self

    def copy(self, folder: Path) -> "Workshop":
        """The same in another folder, where a test may spoil it."""
        shutil.copytree(self.folder, folder)
        return Workshop(folder)

    def order(self, version: str = "3", **changes: Any) -> Order:
        settings = {
            "run": self.run, "type": "Q4_K_M", "name": "demo", "version": version,
            "image": self.image, "constraints": self.pins,
        }  # fmt: skip
        return Order(**{**settings, **changes})

    def bundle(
        self,
        version: str = "3",
        *,
        gate: GateResult = PASSED,
        out: str = "out",
        at: datetime = SIGNED_AT,
        on_bytes: Callable[[int], None] = lambda _: None,
        **changes: Any,
    ) -> Path:
        key = read_private_key(self.private)
        place = self.folder / out
        place.mkdir(exist_ok=True)
        order = self.order(version, **changes)
        return create_bundle(order, gate, key, place, signed_at=at, on_bytes=on_bytes)

    def update(
        self, base: Path, version: str = "4", *, trained_on: str | None = None,
        under: str | None = None, out: str = "out", **changes: Any,
    ) -> Path:  # fmt: skip
        """An update of a bundle; its adapter was trained on that bundle's GGUF unless told."""
        run = self.folder / "runs" / f"after-{trained_on or 'demo'}"
        if not run.exists():
            revision = trained_on or f"sha256:{sha256(GGUF).hexdigest()}"
            make_run(run, base=revision, under=under)
        settings = {"run": run, "type": "", "image": None, "unverified": True, **changes}
        key = read_private_key(self.private)
        place = self.folder / out
        place.mkdir(exist_ok=True)
        return create_delta(self.order(version, **settings), base, key, place, signed_at=SIGNED_AT)
