from pathlib import Path

from kormed_edge.cpu_features import cpu_flags, cpu_has, llama_system_info, unused, used_by
from kormed_edge.hardware_findings import features

OLD_BUILD = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | REPACK = 1"


def test_flags_are_those_of_the_first_processor(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nflags\t\t: sse2 avx2 avx512f\nprocessor : 1\nflags : sse2\n")
    assert cpu_flags(path) == {"sse2", "avx2", "avx512f"}
    assert cpu_flags(tmp_path / "none") == frozenset()


def test_what_a_build_leaves_idle_is_named_with_a_remedy() -> None:
    has = cpu_has(frozenset({"avx2", "avx512f", "amx_int8"}))
    assert unused(has, used_by(OLD_BUILD)) == ["AVX512", "AMX_INT8"]
    finding = features(frozenset({"avx2", "avx512f"}), OLD_BUILD)
    assert finding.found == "AVX2, AVX512; not used by llama.cpp's build: AVX512"
    assert "edge image" in finding.remedy


def test_a_feature_that_is_off_is_not_used() -> None:
    assert used_by("CPU : AVX2 = 1 | AVX512 = 0") == {"AVX2"}


def test_a_build_that_uses_all_is_no_problem() -> None:
    assert features(frozenset({"sse2", "avx2"}), OLD_BUILD).remedy == ""


def test_an_old_processor_is_a_problem() -> None:
    finding = features(frozenset({"sse2"}), "CPU : SSE3 = 1")
    assert finding.found.startswith("none of AVX2")
    assert finding.remedy


def test_llama_tells_what_it_uses() -> None:
    assert "CPU" in llama_system_info()
