"""What the gate says: the outcome, its reasons, one row a check, and the answers that changed."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kormed_edge.config import Thresholds

GATE_VERSION = "1"

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
PASS: Outcome = "PASS"
FAIL: Outcome = "FAIL"
INCONCLUSIVE: Outcome = "INCONCLUSIVE"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Note(_Frozen):
    """One sentence in both languages of the report."""

    en: str
    ko: str


class Check(_Frozen):
    """One row of the verdict. `lower` and `upper` are one-sided bounds of `difference`.

    For flips there is no reference: `candidate` and `difference` are the observed share.
    """

    name: str
    n: int
    reference: float | None
    candidate: float
    difference: float
    lower: float
    upper: float
    limit: float
    needed: int = Field(description="items with which an equally good candidate can pass")
    outcome: Outcome
    note: Note


class DomainChange(_Frozen):
    """Accuracy in one domain, as information: too few items for a verdict of its own."""

    n: int
    reference: float
    candidate: float
    difference: float


class Changes(_Frozen):
    """What equal accuracy hides: answers that changed, in both directions."""

    n: int
    gained: int
    lost: int
    other_option: int = Field(description="wrong in both arms, but another option or unread")
    mcnemar_p: float
    by_domain: dict[str, DomainChange]


class Verdict(_Frozen):
    """`reasons` say why it is not PASS; without valid inputs there are no checks."""

    gate_version: str = GATE_VERSION
    outcome: Outcome
    reasons: tuple[Note, ...]
    thresholds: Thresholds
    checks: tuple[Check, ...] = ()
    changes: Changes | None = None


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """FAIL if any is, else INCONCLUSIVE if any is; there must be one at least."""
    return max(outcomes, key=(PASS, INCONCLUSIVE, FAIL).index)
