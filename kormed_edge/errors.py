"""Errors that a user can act on: what was found, what was expected, the command that mends it."""


class KormedError(Exception):
    """Base of every error that the kit raises on purpose.

    The command line turns it into a message and `exit_code`; anything else keeps its traceback.
    """

    exit_code = 1

    def __init__(self, found: str, expected: str | None = None, remedy: str | None = None) -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        lines = [found]
        if expected:
            lines.append(f"Expected: {expected}")
        if remedy:
            lines.append(f"Remedy:   {remedy}")
        super().__init__("\n".join(lines))


class ConfigError(KormedError):
    """A setting is unknown, missing or out of range."""

    exit_code = 2


class DataError(KormedError):
    """Records cannot be read or are not what AI Hub's format promises."""


class BaseModelError(KormedError):
    """The base model is missing, incomplete or of a kind that the kit does not handle."""


class StageError(KormedError):
    """A stage of a run is missing, unfinished, damaged or made with other settings."""


class DiskSpaceError(KormedError):
    """The disk cannot hold what a command is about to write."""


class TrainError(KormedError):
    """Training cannot start or go on."""


class ExportError(KormedError):
    """A GGUF cannot be written, or is not equal to what it was made from."""


class EvalError(KormedError):
    """Predictions are missing, mismatched or not for release."""


class BundleError(KormedError):
    """A bundle is damaged, unsigned, older than what is installed, or cannot be made."""


class EngineError(KormedError):
    """llama.cpp cannot load or run the model."""


class PromptTooLongError(EngineError):
    """A prompt leaves no room for an answer in the context."""


class DecodeError(EngineError):
    """llama.cpp cannot compute a request."""


class EngineClosedError(EngineError):
    """The engine was closed or has failed; nothing that is asked of it is answered."""

    def __init__(self, found: str = "the engine was closed") -> None:
        super().__init__(found, "an open one", "load the model again")


class EngineBusyError(EngineError):
    """The queue is full: the same request may be given again later."""
