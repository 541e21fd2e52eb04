import random
from itertools import combinations

import pytest

from train.duplicates import near_pairs, normalised


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  가 나,\n다? ", "가나다"),
        ("ＡＳＴ １０％", "ast10%"),
        ("1.5 mg은.", "1.5mg은"),
        ("HBsAg(+)_①", "hbsag+1"),
        ("―「」·…", ""),
    ],
)
def test_case_width_spaces_and_punctuation_do_not_count(text, plain):
    assert normalised(text) == plain


def jaccard(a, b):
    first, second = ({t[k : k + 5] for k in range(max(1, len(t) - 4))} for t in (a, b))
    return len(first & second) / len(first | second)


def mutated(text, times, rng):
    for _ in range(times):
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice("가나다라") + text[place + 1 :]
    return text


def test_every_near_pair_is_found_and_no_other():
    rng = random.Random(5)
    stems = ["".join(rng.choices("가나다라마바사", k=rng.randint(3, 160))) for _ in range(40)]
    texts = [mutated(stem, times, rng) for stem in stems for times in (0, 1, 2, 3)]
    pairs = list(combinations(range(len(texts)), 2))
    wanted = {(i, j): s for i, j in pairs if (s := jaccard(texts[i], texts[j])) >= 0.9}
    assert {(i, j): s for i, j, s in near_pairs(texts)} == wanted
    assert 20 < len(wanted) < len(pairs)


def test_a_similarity_of_exactly_the_threshold_counts():
    long = "".join(chr(0xAC00 + k) for k in range(24))  # 20 grams, of which 18 remain
    assert [s for _, _, s in near_pairs([long, long[:-2]])] == [0.9]
