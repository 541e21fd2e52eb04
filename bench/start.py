"""From start to ready: what `kormed serve` takes beside reading its model, on this machine.

    python bench/start.py FILE.gguf -- kormed serve --model FILE.gguf --port 8099
    python bench/start.py FILE.gguf -- docker run --rm --network host -v DIR:/model:ro kormed-edge \
        serve --model /model/FILE.gguf --port 8099

Starts the command five times, one after another, asks /readyz until it is 200, and prints the
median with the range, and the time to read the file once, which is what a start does first.
"""

import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

TIMES = 5
READY = "http://127.0.0.1:8099/readyz"


def read(path: Path) -> float:
    started = time.monotonic()
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass
    return time.monotonic() - started


def start(command: list[str]) -> float:
    """Seconds until the service is ready; it is stopped again."""
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as service:
        while not _is_ready():
            if service.poll() is not None:
                sys.exit(f"it ended with {service.returncode} before it was ready")
            time.sleep(0.01)
        taken = time.monotonic() - started
        service.terminate()
    return taken


def _is_ready() -> bool:
    try:
        with urllib.request.urlopen(READY, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def main() -> None:
    file, dashes, *command = sys.argv[1:]
    if dashes != "--" or not command:
        sys.exit(__doc__)
    reading = read(Path(file))
    seconds = sorted(start(command) for _ in range(TIMES))
    print(
        f"ready after {statistics.median(seconds):.2f} s ({seconds[0]:.2f}–{seconds[-1]:.2f}), "
        f"reading the file {reading:.2f} s"
    )


if __name__ == "__main__":
    main()
