import json
import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "peft", "trl", "bitsandbytes", "datasets"]
NOT_ON_THE_EDGE = [*HEAVY, "scipy", "kiwipiepy", "rouge_score", "matplotlib"]
ENTRY_POINTS = {
    "command line": "import kormed_edge.cli",
    "help": "from kormed_edge.cli import main; main(['--help'], standalone_mode=False)",
    "service": "import kormed_edge.server, kormed_edge.serve_command, llama_cpp, uvicorn",
    "terminal": "import kormed_edge.ask_command, kormed_edge.appraisal, llama_cpp",
    "evaluation of a GGUF": "import eval.commands, eval.arms, eval.scores, eval.gate",
    "doctor": "from kormed_edge.doctor import examine; from pathlib import Path;"
    "list(examine(Path()))",
}


def loaded(code: str, names: list[str] = HEAVY) -> list[str]:
    """Which of some packages a fresh interpreter has after running some code."""
    code += f"\nimport json, sys\nprint(json.dumps([m for m in {names} if m in sys.modules]))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    found: list[str] = json.loads(answer.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("code", ENTRY_POINTS.values(), ids=ENTRY_POINTS)
def test_the_edge_loads_nothing_of_training(code: str) -> None:
    assert loaded(code) == []


def test_verification_on_site_needs_what_the_edge_image_has() -> None:
    assert loaded("import eval.acceptance_command, eval.arms", NOT_ON_THE_EDGE) == []


def test_the_check_would_see_a_heavy_package() -> None:
    assert loaded("import datasets") == ["datasets"]


@pytest.mark.parametrize("stage", ["train", "export", "eval"])
def test_kormed_edge_imports_no_stage(stage: str) -> None:
    code = "import pkgutil, kormed_edge\nfor m in pkgutil.iter_modules(kormed_edge.__path__):\n"
    code += "    __import__(f'kormed_edge.{m.name}')\n"
    code += f"import sys\nassert '{stage}' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
