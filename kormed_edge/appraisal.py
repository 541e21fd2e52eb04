"""What to think of an answer: the option it chose, how sure it is, what to be wary of."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kormed_edge.answers import read_tolerant
from kormed_edge.asking import Asked
from kormed_edge.calibration import LOW_CONFIDENCE, Calibration, level_of
from kormed_edge.citations import without_citations
from kormed_edge.engine import among_each_other
from kormed_edge.phi import PERSONAL_DATA
from kormed_edge.request import Piece, TokenLogprob
from kormed_edge.safety import find_warnings


def appraise(
    piece: Piece,
    asked: Asked,
    scored: Sequence[TokenLogprob],
    calibration: Calibration | None = None,
    *,
    personal: bool = False,
) -> dict[str, Any]:
    """What `POST /v1/ask` tells of an answer, but for who answered.

    Without a calibration a free answer has no confidence, and an option the probability that the
    model gives it. A calibration is of plain questions, so with passages before it none counts.
    `personal` says that the question seems to hold personal data.
    """
    choices = asked.choices
    calibration = None if asked.passages else calibration
    text = without_citations(piece.text) if asked.passages else piece.text
    option = read_tolerant(text, choices).option if choices else None
    own = among_each_other(scored)
    scaled = calibration.of_options(own) if calibration else None
    probabilities = list(scaled or own) or None
    confidence = probabilities[option - 1] if probabilities and option else None
    if calibration and not choices:
        confidence = calibration.of_text([token.logprob for token in piece.logprobs])
    threshold = calibration.threshold if calibration else LOW_CONFIDENCE
    warnings = find_warnings(
        piece.text,
        unfinished=piece.finish_reason == "length",
        has_options=bool(choices),
        option=option,
        confidence=confidence,
        threshold=threshold,
    )
    level = None if confidence is None else level_of(confidence, threshold)
    return {
        "answer": piece.text,
        "finish_reason": piece.finish_reason,
        "option": option,
        "option_probabilities": probabilities,
        "confidence": confidence,
        "confidence_words": level._asdict() if level else None,
        "calibrated": confidence is not None and (scaled is not None or not choices),
        "warnings": [asdict(one) for one in (*warnings, *([PERSONAL_DATA] if personal else ()))],
        **asked.grounds(piece.text),
    }
