"""Limits of the JSON schemas that strangers may send; llama.cpp answers by a grammar made of them.

llama.cpp reads groups by recursion, and 20,000 of them inside one another end the process; 300
optional characters in a row keep one step busy for minutes; a rule that is open to itself in two
ways doubles what there is to keep with every token. llama-cpp-python writes repetitions out, so a
schema of 20 bytes can ask for a grammar of gigabytes.
"""

import json
import re
from collections.abc import Iterator
from math import isfinite, prod
from typing import Any

from kormed_edge.api_errors import ApiError

MAX_BYTES = 64 * 1024
MAX_REPEATED = 100
MAX_DEPTH = 32
MAX_COUNT = 1000

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
_QUANTIFIER = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")


def check_schema(schema: dict[str, Any], param: str = "response_format") -> None:
    """Raise `ApiError` 400 for a JSON schema beyond a limit, 422 for what is not JSON."""
    repeated = 0
    for key, value, depth in _walk(schema):
        _require(depth <= MAX_DEPTH, f"at most {MAX_DEPTH} levels", param)
        _require_json(key, value, param)
        if key in _COUNTS and isinstance(value, int | float):
            _require(0 <= value <= MAX_COUNT, f"{key} from 0 to {MAX_COUNT}", param)
        if key == "pattern" and isinstance(value, str):
            counts = [int(n[:9]) for pair in _QUANTIFIER.findall(value) for n in pair if n]
            _require(prod(counts) <= MAX_COUNT, f"at most {MAX_COUNT} repetitions", param)
            repeated += sum(value.count(sign) for sign in "?*+{")
            _require(value.count("(") <= MAX_REPEATED, f"at most {MAX_REPEATED} groups", param)
    _require(repeated <= MAX_REPEATED, f"at most {MAX_REPEATED} of ? * + and {{}}", param)
    _require(len(json.dumps(schema)) <= MAX_BYTES, f"at most {MAX_BYTES} bytes", param)
    references = list(_references(schema))
    _require(len(references) <= MAX_REPEATED, f"at most {MAX_REPEATED} references", param)
    _require(not _leads_back(references), "schemas that do not hold themselves", param)


def _walk(schema: Any) -> Iterator[tuple[str, Any, int]]:
    """Every value inside a schema with its key and depth; not by recursion, which has an end."""
    todo = [("", schema, 0)]
    while todo:
        key, value, depth = todo.pop()
        yield key, value, depth
        if isinstance(value, dict):
            todo += [(k, v, depth + 1) for k, v in value.items()]
        elif isinstance(value, list):
            todo += [("", v, depth + 1) for v in value]


def _leads_back(references: list[tuple[str, str]]) -> bool:
    """Whether following references, each from its place to its target, leads back to one."""
    inside = {
        target: [other for path, other in references if f"{path}/".startswith(f"{target}/")]
        for _, target in references
    }
    while inside:  # take away what refers to nothing that is left
        ends = [target for target, others in inside.items() if not any(o in inside for o in others)]
        if not ends:
            return True
        for target in ends:
            del inside[target]
    return False


def _references(schema: Any) -> Iterator[tuple[str, str]]:
    """Where every reference stands, and what it names, as JSON pointers."""
    todo = [("#", schema)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict):
            if isinstance(target := value.get("$ref"), str):
                yield path, target.rstrip("/")
            todo += [(f"{path}/{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            todo += [(f"{path}/{i}", inner) for i, inner in enumerate(value)]


def _require(fits: bool, limit: str, param: str) -> None:
    if not fits:
        raise ApiError(400, f"{param} is too large: {limit} are allowed", param=param)


def _require_json(key: str, value: Any, param: str) -> None:
    """Python's parser lets through NaN and halves of surrogate pairs, which are no JSON text."""
    texts = [text for text in (key, value) if isinstance(text, str)]
    half = any("\ud800" <= char <= "\udfff" for text in texts for char in text)
    if half or (isinstance(value, float) and not isfinite(value)):
        raise ApiError(422, f"{param} contains what JSON does not allow", param=param)
