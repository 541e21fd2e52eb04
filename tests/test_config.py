from pathlib import Path
from typing import Any

import pytest
import yaml

from kormed_edge.config import GateConfig, RunConfig, known_keys, load_config
from kormed_edge.errors import ConfigError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_there_are_configs_to_load() -> None:
    assert "demo.yaml" in [path.name for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_the_kit_loads(path: Path) -> None:
    keys = {key for key, _, _ in known_keys()}
    sources = load_config(path).sources
    assert sources
    assert {key for key in sources if key.rpartition(".")[0] not in keys} <= keys


def test_no_file_gives_the_papers_settings() -> None:
    values = load_config(None).values
    assert values.base == "Qwen/Qwen2.5-7B-Instruct"
    train = values.train
    assert (train.rank, train.alpha, train.dropout, train.epochs) == (16, 32, 0.05, 3.0)
    assert (train.batch_size, train.gradient_accumulation, train.max_length) == (2, 8, 1024)
    assert (train.learning_rate, train.schedule, train.warmup_ratio) == (2e-4, "cosine", 0.05)
    assert len(train.target_modules) == 7


def test_unknown_key_is_named_as_it_was_typed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.ranks: unknown key"):
        load_config(write(tmp_path, "train: {ranks: 8}"))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "typo: 1\ntrain: {rank: -1, loss: all}\ndata: {ratios: [1, 1, 1]}")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["train.dropout=2", "no-equals-sign", "base.name=x", "train.seed=[1"])
    message = str(caught.value)
    assert caught.value.exit_code == 2
    for part in (
        "8 mistake(s)", "typo: unknown key", "train.rank:", "train.loss:", "train.dropout:",
        "--set no-equals-sign: expected key=value", "ratios must sum to 1", "--set train.seed=[1:",
    ):  # fmt: skip
        assert part in message, message


def test_overriding_inside_a_value_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set base\.name=x: base is a value, not a section"):
        load_config(write(tmp_path, "base: some/model"), ["base.name=x"])


def test_every_value_knows_where_it_came_from(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {rank: 8, alpha: 16}")
    config = load_config(path, ["train.alpha=64", "eval={limit: 3}", "train.learning_rate=1e-3"])
    rows = {key: (value, source) for key, value, source in config.rows()}
    assert rows["train.rank"] == (8, str(path))
    assert rows["train.alpha"] == (64, "command line")
    assert rows["eval.limit"] == (3, "command line")
    assert rows["train.learning_rate"] == (1e-3, "command line")
    assert rows["train.dropout"] == (0.05, "default")


def test_written_settings_read_back_as_the_same(tmp_path: Path) -> None:
    config = load_config(None, ["train.rank=8", "base=모형/가"])
    assert load_config(write(tmp_path, config.to_yaml())).values == config.values


def test_settings_do_not_change_after_the_check() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(None).values.train.rank = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "holds a list"),
        ("a: [", "cannot be read"),
        ("base: caf\udce9", "cannot be read"),
    ],
)
def test_file_that_is_no_settings_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing yet\n")).values == RunConfig()


def test_known_keys_are_those_of_the_settings() -> None:
    flat = [key for key, _, _ in load_config(None).rows()]
    assert [key for key, _, _ in known_keys()] == flat
    assert yaml.safe_load(load_config(None).to_yaml())["eval"]["gate"]["margin"] == -0.02


@pytest.mark.parametrize(
    ("gate", "limit"),
    [
        ({}, 0.08),
        ({"candidate": "gguf:Q8_0"}, 0.02),
        ({"candidate": "merged"}, 0.02),
        ({"candidate": "gguf:Q5_K_M"}, 0.04),
        ({"candidate": "gguf:IQ4_XS"}, 0.08),
        ({"candidate": "lora:Q8_0"}, 0.02),
        ({"candidate": "gguf:Q8_0", "max_flips": 0.05}, 0.05),
    ],
)
def test_flips_are_limited_by_the_candidate_s_type(gate: dict[str, Any], limit: float) -> None:
    assert GateConfig.model_validate(gate).max_flips == limit
