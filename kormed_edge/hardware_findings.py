"""Findings about the machine: processor, memory, graphics card, disks, clock."""

import os
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from kormed_edge.cpu_features import cpu_flags, cpu_has, llama_system_info, unused, used_by
from kormed_edge.errors import EngineError
from kormed_edge.findings import Finding
from kormed_edge.manifest import cpu_model, total_memory

PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


def cpu() -> Finding:
    return Finding("CPU", f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores")


def features(flags: frozenset[str], system_info: str) -> Finding:
    """What makes answers fast, and whether llama.cpp's build uses it."""
    has = cpu_has(flags)
    there = ", ".join(name for name, found in has.items() if found) or "none of AVX2, AVX512, AMX"
    if idle := unused(has, used_by(system_info)):
        return Finding(
            "CPU features",
            f"{there}; not used by llama.cpp's build: {', '.join(idle)}",
            "use the edge image, or build llama-cpp-python on this machine: "
            "pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python==VERSION",
        )
    remedy = "" if has["AVX2"] or not flags & {"sse2"} else "a CPU since 2013: answers are slow"
    return Finding("CPU features", f"{there}; all used by llama.cpp's build", remedy)


def cpu_features() -> Finding:
    try:
        return features(cpu_flags(), llama_system_info())
    except (ImportError, OSError) as error:
        return Finding("CPU features", f"llama.cpp does not load: {error}", "see its package below")


def memory(low: float) -> Finding:
    total = total_memory() / 1e9
    return Finding("memory", f"{total:.1f} GB", f"{low:g} GB are needed" if total < low else "")


def model_memory(model: Path, *, context: int, slots: int) -> Finding:
    """Whether a GGUF fits as `kormed serve` would load it."""
    from kormed_edge.engine import BATCH
    from kormed_edge.memory_plan import ModelShape, free_ram, plan_memory

    name = "memory for the model"
    try:
        shape = ModelShape.read(model)
        plan = plan_memory(shape, context=context, slots=slots, batch=BATCH)
    except (EngineError, OSError) as error:
        found = error.found if isinstance(error, EngineError) else f"{model}: {error.strerror}"
        remedy = error.remedy if isinstance(error, EngineError) else None
        return Finding(name, found, remedy or "give another --model")
    needed, free = plan.in_ram / 1e9, free_ram() / 1e9
    return Finding(name, f"{model.name} needs {needed:.2f} GB of the {free:.2f} GB that are free")


def gpu(pci: Path = PCI) -> Finding:
    """The cards that the driver knows; a card without a driver is a problem, no card is none."""
    try:
        query = [
            "nvidia-smi",
            "--query-gpu=name,memory.total,driver_version",
            "--format=csv,noheader",
        ]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        if _has_nvidia_card(pci):
            return Finding("GPU", "an NVIDIA card without its driver", "install NVIDIA's driver")
        return Finding("GPU", "none: training a 7B model needs one; serving and the demo do not")
    if answer.returncode:
        said = (answer.stdout + answer.stderr).strip().splitlines() or ["no reason given"]
        return Finding("GPU", f"the driver fails: {said[0]}", "restart; else reinstall the driver")
    lines = answer.stdout.strip().splitlines()
    return Finding("GPU", "; ".join(f"{line} (driver)" for line in lines) + _llama_gpus())


def _llama_gpus() -> str:
    from kormed_edge.ggml import gpus

    try:
        used = [card.name for card in gpus()]
    except (ImportError, OSError):
        return ""
    return f"; llama.cpp uses {', '.join(used)}" if used else "; llama.cpp's build uses none"


def _has_nvidia_card(pci: Path) -> bool:
    return any(
        (device / "vendor").read_text().strip() == _NVIDIA
        and (device / "class").read_text().startswith(_DISPLAY)
        for device in (pci.iterdir() if pci.is_dir() else ())
    )


def disk(name: str, path: Path, needed: float, purpose: str) -> Finding:
    """Free space where `path` is or will be; `needed` in bytes."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    remedy = f"free some space; {purpose} needs {needed / 1e9:g} GB" if free < needed else ""
    return Finding(f"disk of {name}", f"{free / 1e9:.1f} GB free at {path}", remedy)


def clock(signed: str | None, now: float | None = None) -> Finding:
    """This machine's time, which can not be before what was signed or built.

    `signed` is the bundle's time of signing, as its statement has it.
    """
    moment = time.time() if now is None else now
    shown = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    built = Path(__file__).stat().st_mtime
    problem = ""
    if signed is not None and shown < signed:
        problem = f", before the bundle was signed, {signed}"
    elif moment < built:
        built_at = datetime.fromtimestamp(built, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        problem = f", before this software was installed, {built_at}"
    remedy = "set the clock: timedatectl set-time 'YYYY-MM-DD HH:MM:SS'" if problem else ""
    return Finding("clock", shown + problem, remedy)
