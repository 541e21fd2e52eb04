"""What the documentation says is what the code does."""

import re
import runpy
import subprocess
from pathlib import Path

from kormed_edge.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands_in(page: Path) -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_generated_pages_are_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert generate["write_pages"](check=True) == [], "run: make docs"


def test_help_of_make_lists_every_target_with_its_meaning() -> None:
    shown = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in shown.splitlines() if line.startswith("  make ")} == (
        make_targets()
    )


def test_every_phony_target_has_a_help_text() -> None:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == make_targets()


def test_documents_name_only_targets_and_commands_that_exist() -> None:
    lines = [line for page in PAGES for line in commands_in(page)]
    made = {
        word
        for line in lines
        if line.startswith("make ")
        for word in line.partition("#")[0].split()[1:]
        if "=" not in word
    }
    called = {line.split()[1] for line in lines if line.startswith("kormed ")}
    assert made, "no make command found in the documents"
    assert made <= make_targets()
    assert called, "no kormed command found in the documents"
    assert called <= set(COMMANDS)


def test_edge_image_pins_are_the_pins_of_the_kit() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / name).read_text().splitlines()
        return {line.split(" ")[0] for line in lines if "==" in line and not line.startswith("#")}

    assert pins("constraints-edge.txt")
    assert pins("constraints-edge.txt") <= pins("constraints.txt")
