"""The gate's error rates, in small: bench/gate_error_rates.py has the table of docs/verify.md."""

from pathlib import Path

import pytest

from bench.gate_error_rates import (
    Cell,
    disagreements,
    exact_table,
    false_pass,
    power_table,
    simulate,
    verdicts,
)

PAGE = Path(__file__).parents[1] / "docs" / "verify.md"

TRIALS = 2000
SEED = 7


def standard_error(share: float) -> float:
    return float((share * (1 - share) / TRIALS) ** 0.5)


@pytest.mark.parametrize("flips", [0.06, 0.03])
@pytest.mark.parametrize("n", [435, 1728])
def test_a_loss_of_the_margin_passes_in_at_most_5_percent(n: int, flips: float) -> None:
    share = simulate(Cell(n, 0.02, flips), TRIALS, SEED)["PASS"] / TRIALS
    assert share <= 0.05 + 3 * standard_error(0.05)
    assert share == pytest.approx(false_pass(n, flips), abs=3 * standard_error(0.05))


def test_the_false_pass_without_simulation_is_at_most_5_percent() -> None:
    assert max(false_pass(n, 0.06) for n in (200, 435, 1403, 1728)) <= 0.05
    assert false_pass(1728, 0.06) > 0.045, "a bound that is never reached wastes items"


def test_no_loss_passes_mostly_and_never_fails_on_1728_items() -> None:
    found = simulate(Cell(1728, 0.0, 0.06), TRIALS, SEED)
    assert found["PASS"] > 0.9 * TRIALS
    assert found["FAIL"] == 0


@pytest.mark.parametrize("n", [435, 1728])
def test_a_loss_of_8_points_never_passes_and_mostly_fails(n: int) -> None:
    found = simulate(Cell(n, 0.08, 0.06), TRIALS, SEED)
    assert found["PASS"] == 0
    assert found["FAIL"] > 0.98 * TRIALS


def test_a_loss_of_the_margin_is_rarely_called_proven() -> None:
    share = simulate(Cell(1728, 0.02, 0.06), TRIALS, SEED)["FAIL"] / TRIALS
    assert share <= 0.05 + 3 * standard_error(0.05)


@pytest.mark.parametrize("loss", [0.0, 0.04])
def test_the_simulation_judges_as_decide_does(loss: float) -> None:
    assert disagreements(Cell(200, loss, 0.06), trials=3, seed=SEED) == 0


def test_the_whole_gate_cannot_pass_on_435_items() -> None:
    assert verdicts(Cell(435, 0.0, 0.03), trials=10, seed=SEED)["PASS"] == 0


def test_the_page_shows_the_tables_that_need_no_simulation() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert exact_table() in page
    assert power_table() in page
