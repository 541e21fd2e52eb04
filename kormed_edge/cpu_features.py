"""What the processor can do for llama.cpp, and what of it the build of llama.cpp here uses."""

import re
from collections.abc import Mapping
from pathlib import Path

from kormed_edge.llama_log import llama_log

CPUINFO = Path("/proc/cpuinfo")
WORTH = {
    "AVX2": "avx2",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
}
"""llama.cpp's name of a feature, and Linux's flag; what makes answers faster on x86-64."""
_SETTING = re.compile(r"(\w+) = (\d+)")


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Flags of the first processor, as Linux names them; none where it gives none."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(found.partition(":")[2].split())


def cpu_has(flags: frozenset[str]) -> dict[str, bool]:
    return {name: flag in flags for name, flag in WORTH.items()}


def llama_system_info() -> str:
    """What llama.cpp says of the processor code that it has loaded."""
    import llama_cpp

    with llama_log(lambda _: None):
        llama_cpp.llama_backend_init()  # a build with several variants chooses one here
    info: bytes = llama_cpp.llama_print_system_info()
    return info.decode("utf-8", "replace").strip(" |")


def used_by(system_info: str) -> frozenset[str]:
    """Features that are on in `llama_system_info`."""
    return frozenset(name for name, value in _SETTING.findall(system_info) if value != "0")


def unused(has: Mapping[str, bool], used: frozenset[str]) -> list[str]:
    """What the processor has and llama.cpp's build leaves idle."""
    return [name for name, there in has.items() if there and name not in used]
