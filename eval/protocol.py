"""How a model is asked: the way of the kit, or a benchmark's."""

from collections.abc import Callable
from dataclasses import dataclass

from eval.benchmark import MAX_TOKENS, STOPS, cut_at_stop, lm_eval_prompt
from kormed_edge.prompts import question_prompt
from kormed_edge.records import Record


@dataclass(frozen=True, slots=True)
class Protocol:
    """The text that a record becomes, and where the answer to it ends.

    `chat`: the prompt is ChatML under the kit's system prompt, and white space around the answer
    means nothing. Otherwise it is a bare text that the model goes on with.
    """

    name: str
    prompt: Callable[[Record], str]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    chat: bool = False

    def cut(self, text: str) -> str:
        """The text before the first stop string, which is no part of an answer."""
        return cut_at_stop(text, self.stop)


def kit(max_new_tokens: int) -> Protocol:
    """As the service asks."""
    return Protocol("kormed", lambda r: question_prompt(r.question), max_new_tokens, chat=True)


LM_EVAL = Protocol("lm-eval", lm_eval_prompt, MAX_TOKENS, STOPS)
