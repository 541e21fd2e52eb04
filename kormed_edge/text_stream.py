"""Text from the bytes of tokens, as soon as it is certain."""

import codecs


class TextStream:
    """Gives out whole characters only, and holds back what may become a stop string.

    A token can carry a part of a Hangul syllable: its bytes wait for the rest.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._stop = stop
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The text that is certain after `data`, which may be none; sets `stopped`."""
        self._held += self._decoder.decode(data)
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        certain = len(self._held) - keep
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def finish(self) -> str:
        """What was held back; bytes that became no character are U+FFFD. Nothing once stopped."""
        if self.stopped:
            return ""
        return self._held + self._decoder.decode(b"", final=True)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` could begin with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
