"""What the README tells people to type, CI types too."""

from test_docs import ROOT, commands_in


def test_every_kormed_command_of_the_readme_is_run_by_ci() -> None:
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    lines = [line.partition("  #")[0].rstrip() for line in commands_in(ROOT / "README.md")]
    called = [line for line in lines if line.startswith("kormed ")]
    assert called
    assert [line for line in called if f".venv/bin/{line}" not in run] == []
