"""The `kormed` command: one group, its commands loaded only when they are called.

A stage whose packages are not installed, as on the edge image, is simply not there.
"""

import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import click

from kormed_edge import __version__
from kormed_edge.errors import KormedError

COMMANDS = {
    "data": "train.commands",
    "train": "train.commands",
    "export": "export.commands",
    "eval": "eval.commands",
    "verify": "eval.commands",
    "judge": "eval.judge_command",
    "benchmark": "kormed_edge.benchmark",
    "demo": "kormed_edge.demo",
    "serve": "kormed_edge.serve_command",
    "keys": "kormed_edge.keys_command",
    "audit": "kormed_edge.audit_command",
    "guidelines": "kormed_edge.guidelines_command",
    "ask": "kormed_edge.ask_command",
    "bench": "kormed_edge.bench_command",
    "bundle": "kormed_edge.bundle_command",
    "doctor": "kormed_edge.doctor",
}
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_DISABLED": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "BITSANDBYTES_NOWELCOME": "1",
    # Packs of several sizes leave holes between fixed segments: 18.8 GB reserved instead of 13.9.
    # torch reads it when it is imported.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
"""What libraries are told unless the user says otherwise: nothing leaves the machine, no noise."""
HELP = """Teach a language model Korean essential medicine, prove what it kept, serve it offline.

\b
Exit codes: 0 done · 1 failed · 2 wrong use · 3 gate FAIL · 4 gate INCONCLUSIVE
Example:    kormed demo
"""
# A command whose own module is there, in the edge image too, but which needs another stage.
NEEDS = dict.fromkeys(("demo", "benchmark", "eval", "judge"), "train")
OWN = ("kormed_edge", "train", "export", "eval")
Function = TypeVar("Function", bound=Callable[..., Any])


class KormedGroup(click.Group):
    """Loads commands lazily and turns domain errors into messages with their exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [n for n, module in COMMANDS.items() if _is_installed(NEEDS.get(n, module))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(COMMANDS[cmd_name])
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KormedError, ModuleNotFoundError) as error:
            found = _as_kormed_error(error)
            if found is None or os.environ.get("KORMED_DEBUG"):
                raise
            click.ClickException(str(found)).show()
            ctx.exit(found.exit_code)


def _as_kormed_error(error: KormedError | ModuleNotFoundError) -> KormedError | None:
    """The error to show; None for a missing module of the kit itself, which is a fault in it."""
    if isinstance(error, KormedError):
        return error
    package = str(error.name).partition(".")[0]
    if package in OWN:
        return None
    return KormedError(
        f"the package {package} is not installed",
        "the packages that this command needs",
        "kormed doctor, which lists what is missing and how to install it",
    )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


@click.group(cls=KormedGroup, help=HELP, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="kormed")
def main() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    # Libraries about themselves: a kernel that has a fallback, a name that will change.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


if __name__ == "__main__":
    sys.exit(main())
