"""How often the gate is wrong: arms with a planted loss of accuracy, judged many times.

    python bench/gate_error_rates.py [--trials 10000] [--verdicts 200] [--seed 42] [--scan]

Prints Markdown: the outcome of the accuracy check by items and true loss; its false PASS at a loss
of exactly the margin, summed over every possible table instead of simulated; the items that a
margin needs; and the outcome of the whole gate for an arm that lost nothing. The first uses the
gate's own decision on a table drawn at random; on one trial a cell every check is held against
`decide` on the same predictions.
Half a minute on one core; `--scan` adds the worst false PASS of all n to 2,000 and takes another.
"""

import argparse
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom

from eval.checks import Pair, check_all, items_needed, non_inferiority, paired_bounds
from eval.gate import decide
from eval.scores import score_items
from eval.verdict import FAIL, INCONCLUSIVE, PASS, Outcome, worst
from kormed_edge.config import Thresholds

SIZES = (200, 435, 1403, 1728)
LOSSES = (0.0, 0.02, 0.04, 0.08)
FLIPS = (0.06, 0.03)
EXACT_FLIPS = (0.02, 0.025, 0.03, 0.04, 0.06, 0.08, 0.10)
MARGINS = (0.01, 0.02, 0.03)
POWER_FLIPS = (0.03, 0.06, 0.08)
ACCURACY = 0.68  # of the reference arm: the paper's 45 of 66
OUTCOMES = (PASS, FAIL, INCONCLUSIVE)
LIMITS = Thresholds()

QUESTION = "가장 적절한 검사는?\n1) 심전도\n2) 흉부 엑스선\n3) 초음파\n4) 뇌파\n5) 내시경"
RIGHT, WRONG = "3) 초음파", "2) 흉부 엑스선"
KINDS = ((RIGHT, RIGHT), (RIGHT, WRONG), (WRONG, RIGHT), (WRONG, WRONG))

Rows = list[dict[str, Any]]


class Cell(NamedTuple):
    """`n` multiple-choice items, the true loss, and the share of items that flip."""

    n: int
    loss: float
    flips: float

    def shares(self) -> tuple[float, float, float, float]:
        """Items right in both arms, lost, gained, wrong in both.

        Flips are split to give the loss; a loss above the flips is all of them.
        """
        lost = (max(self.flips, self.loss) + self.loss) / 2
        gained = lost - self.loss
        return ACCURACY - lost, lost, gained, 1 - ACCURACY - gained

    def generator(self, seed: int) -> np.random.Generator:
        """Of this cell alone, so that no cell depends on which others are run."""
        return np.random.default_rng(
            [seed, self.n, round(1e4 * self.loss), round(1e4 * self.flips)]
        )


@cache
def accuracy_outcome(gained: int, lost: int, n: int) -> Outcome:
    return non_inferiority(paired_bounds(gained, lost, n, LIMITS.confidence), LIMITS.margin)


def simulate(cell: Cell, trials: int, seed: int) -> Counter[Outcome]:
    """Outcomes of the accuracy check in `trials` random tables."""
    tables = cell.generator(seed).multinomial(cell.n, cell.shares(), size=trials)
    return Counter(accuracy_outcome(int(g), int(lost), cell.n) for _, lost, g, _ in tables)


def false_pass(n: int, flips: float) -> float:
    """Probability of PASS at a true loss of the margin, over all tables: no simulation error."""
    _, lost, gained, _ = Cell(n, -LIMITS.margin, flips).shares()
    losses = np.arange(int(binom.isf(1e-10, n, lost)) + 1)
    enough = np.array(fewest_gains(n, len(losses)))
    passing = binom.sf(enough - 1, n - losses, gained / (1 - lost))
    return float(binom.pmf(losses, n, lost) @ passing)


@cache
def fewest_gains(n: int, count: int) -> list[int]:
    """For 0, 1, ... lost items the gains from which the check passes."""
    gains = [0]
    for lost in range(count):
        gained = gains[-1]
        while accuracy_outcome(gained, lost, n) != PASS:
            gained += 1
        gains.append(gained)
    return gains[1:]


def planted_kinds(cell: Cell, generator: np.random.Generator) -> list[int]:
    return [int(kind) for kind in generator.choice(4, size=cell.n, p=cell.shares())]


def planted_arms(kinds: list[int]) -> tuple[Rows, Rows]:
    """Both arms' predictions, one item a kind."""
    row = {
        "domain": "emergency",
        "q_type": "multiple_choice",
        "question": QUESTION,
        "answer": RIGHT,
        "finish_reason": "stop",
        "n_tokens": 5,
        "seconds": 0.1,
    }
    reference, candidate = (
        [row | {"qa_id": f"q{i}", "output": KINDS[kind][arm]} for i, kind in enumerate(kinds)]
        for arm in (0, 1)
    )
    return reference, candidate


@cache
def scored_kinds() -> list[Pair]:
    """One scored pair of each kind: scoring is what takes the time of a verdict."""
    reference, candidate = (score_items(arm) for arm in planted_arms([0, 1, 2, 3]))
    return list(zip(reference, candidate, strict=True))


def disagreements(cell: Cell, trials: int, seed: int) -> int:
    """Trials in which a check of `decide`, on predictions, is not the one used here."""
    generator, count = cell.generator(seed), 0
    for _ in range(trials):
        kinds = planted_kinds(cell, generator)
        checks = decide(*planted_arms(kinds), LIMITS).checks
        quick = accuracy_outcome(kinds.count(2), kinds.count(1), cell.n)
        same = checks == tuple(check_all([scored_kinds()[k] for k in kinds], LIMITS))
        count += not (same and checks[0].outcome == quick)
    return count


def verdicts(cell: Cell, trials: int, seed: int) -> Counter[Outcome]:
    """Outcomes of the whole gate, all checks together."""
    generator, found = cell.generator(seed), Counter[Outcome]()
    for _ in range(trials):
        pairs = [scored_kinds()[kind] for kind in planted_kinds(cell, generator)]
        found[worst([check.outcome for check in check_all(pairs, LIMITS)])] += 1
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def percents(found: Counter[Outcome]) -> str:
    total = found.total()
    return " / ".join(f"{100 * found[outcome] / total:.1f}" for outcome in OUTCOMES)


def print_accuracy(trials: int, seed: int) -> None:
    for flips in FLIPS:
        print(f"PASS / FAIL / INCONCLUSIVE in % of {trials:,} trials, flips {100 * flips:g} %\n")
        rows = [
            [f"{n:,}", *(percents(simulate(Cell(n, loss, flips), trials, seed)) for loss in LOSSES)]
            for n in SIZES
        ]
        print(table(["n", *(f"loss {100 * loss:g}" for loss in LOSSES)], rows))


def exact_table() -> str:
    rows = [[f"{n:,}", *(f"{100 * false_pass(n, f):.1f}" for f in EXACT_FLIPS)] for n in SIZES]
    return table(["n", *(f"flips {100 * flips:g} %" for flips in EXACT_FLIPS)], rows)


def power_table() -> str:
    rows = [
        [f"{100 * margin:g}", *(f"{items_needed(f, margin):,}" for f in POWER_FLIPS)]
        for margin in MARGINS
    ]
    return table(["points", *(f"flips {100 * flips:g} %" for flips in POWER_FLIPS)], rows)


def print_scan() -> None:
    """From the first n whose accuracy can pass, and from the first whose rates can too."""
    found: dict[int, list[tuple[float, ...]]] = {133: [], 539: []}
    for n in range(133, 2001):
        shares = tuple(false_pass(n, flips) for flips in EXACT_FLIPS)
        accuracy_outcome.cache_clear()  # or it grows to a million tables
        for start, seen in found.items():
            seen += [shares] if n >= start else []
    print("worst false PASS in % of all n up to 2,000, exact, true loss 2 points\n")
    rows = [
        [f"from {start}", *(f"{100 * max(column):.1f}" for column in zip(*seen, strict=True))]
        for start, seen in found.items()
    ]
    print(table(["n", *(f"flips {100 * flips:g} %" for flips in EXACT_FLIPS)], rows))


def print_verdicts(trials: int, seed: int) -> None:
    cells = [Cell(n, loss, flips) for n in SIZES for loss in LOSSES for flips in FLIPS]
    wrong = sum(disagreements(cell, 1, seed) for cell in cells)
    print(f"`decide` on predictions, {len(cells)} trials: {wrong} disagree\n")
    print(f"the whole gate, loss 0: PASS / FAIL / INCONCLUSIVE in % of {trials:,} trials\n")
    rows = [
        [f"{n:,}", *(percents(verdicts(Cell(n, 0.0, f), trials, seed)) for f in FLIPS)]
        for n in SIZES
    ]
    print(table(["n", *(f"flips {100 * flips:g} %" for flips in FLIPS)], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--verdicts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--scan", action="store_true")
    given = parser.parse_args()
    print_accuracy(given.trials, given.seed)
    print(f"false PASS in %, exact, true loss 2 points\n\n{exact_table()}")
    print(f"items needed to pass with a probability of 80 %, loss 0\n\n{power_table()}")
    print_verdicts(given.verdicts, given.seed)
    if given.scan:
        print_scan()


if __name__ == "__main__":
    main()
