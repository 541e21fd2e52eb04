import hashlib
from pathlib import Path

import pytest

from kormed_edge import bundle_blocks
from kormed_edge.bundle_blocks import BLOCKS, copy_split, describe_blocks, find_damage
from kormed_edge.errors import BundleError
from kormed_edge.manifest import write_json

WHOLE = bytes(range(25))


def ignore(_: int) -> None:
    pass


@pytest.fixture
def sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A file of 25 bytes in blocks of 10, with its blocks.json."""
    monkeypatch.setattr(bundle_blocks, "BLOCK_BYTES", 10)
    (tmp_path / "a").write_bytes(WHOLE)
    blocks, sums = describe_blocks(tmp_path, ["a"], ignore)
    write_json(tmp_path / BLOCKS, blocks)
    return sums | describe_blocks(tmp_path, [BLOCKS], ignore)[1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (WHOLE, []),
        (b"x" + WHOLE[1:], ["a: damaged, bytes 0 to 9"]),
        (WHOLE[:12] + b"x" + WHOLE[13:], ["a: damaged, bytes 10 to 19"]),
        (WHOLE[:12] + b"0123456789012", ["a: damaged, bytes 10 to 24"]),
        (b"x" + WHOLE[1:24] + b"x", ["a: damaged, bytes 0 to 9", "a: damaged, bytes 20 to 24"]),
        (WHOLE[:10], ["a: missing, bytes 10 to 24"]),
        (WHOLE[:5], ["a: damaged, bytes 0 to 9", "a: missing, bytes 10 to 24"]),
        (b"", ["a: missing, bytes 0 to 24"]),
        (WHOLE + b"xyz" * 3, ["a: damaged, bytes 20 to 24", "a: too many, bytes 25 to 33"]),
    ],
)
def test_damaged_bytes_are_named(
    content: bytes, expected: list[str], sums: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(content)
    assert [str(damage) for damage in find_damage(tmp_path, sums, ignore)] == expected


def test_the_commands_that_are_named_mend_the_file(sums: dict[str, str], tmp_path: Path) -> None:
    import subprocess

    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(WHOLE)
    for content in (WHOLE[:5], WHOLE + b"xyz" * 3, b"x" + WHOLE[1:24] + b"x"):
        (tmp_path / "a").write_bytes(content)
        for damage in find_damage(tmp_path, sums, ignore):
            command = damage.copy_command(tmp_path).replace("SOURCE", str(source))
            subprocess.run(command.split(), check=True, capture_output=True)
        assert (tmp_path / "a").read_bytes() == WHOLE


def test_damaged_blocks_file_is_not_believed(sums: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / BLOCKS).write_text("{")
    (tmp_path / "a").write_bytes(b"x" + WHOLE[1:])
    assert [str(d) for d in find_damage(tmp_path, sums, ignore)] == [
        "a: not the file that was signed, bytes 0 to 24",
        f"{BLOCKS}: not the file that was signed, bytes 0 to 0",
    ]


@pytest.mark.parametrize(
    ("limit", "sizes"), [(None, []), (25, []), (24, [24, 1]), (10, [10, 10, 5]), (5, [5] * 5)]
)
def test_parts_are_no_larger_than_asked_and_join(
    limit: int | None, sizes: list[int], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(WHOLE)
    digest = copy_split(tmp_path / "a", tmp_path / "b", limit, ignore)
    parts = sorted(tmp_path.glob("b.part-*"))
    assert digest == hashlib.sha256(WHOLE).hexdigest()
    assert [part.stat().st_size for part in parts] == sizes
    assert b"".join(p.read_bytes() for p in parts or [tmp_path / "b"]) == WHOLE
    assert (tmp_path / "b").exists() == (not sizes)
    if sizes:
        assert (tmp_path / "b.sha256").read_text() == f"{digest}  b\n"


def test_too_many_parts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1001))
    with pytest.raises(BundleError, match="more than 1000 parts"):
        copy_split(tmp_path / "a", tmp_path / "b", 1, ignore)
