"""A machine as a hospital's, with a real engine, and no network but for the engine's socket."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "kormed_edge/bundle_files/install.sh"
DOCKER = os.environ.get("DOCKER") or "docker"
NAME = "kormed"  # of the service's container, the installer's choice


def docker(*words: str, timeout: float = 300) -> str:
    done = subprocess.run([DOCKER, *words], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class RealSite:
    """What the installer may write, and the environment in which it runs."""

    def __init__(self, folder: Path, key: Path, **settings: str) -> None:
        self.root, self.etc, self.key = folder / "lib", folder / "etc", key
        self.etc.mkdir(parents=True)
        lines = "".join(f"KORMED_{name}={value}\n" for name, value in settings.items())
        (self.etc / "site.env").write_text(lines)
        self.environment = os.environ | {
            "KORMED_ROOT": str(self.root), "KORMED_ETC": str(self.etc),
            "KORMED_UNITS": str(folder / "units"), "KORMED_QUADLETS": str(folder / "quadlets"),
            "KORMED_ENGINE": DOCKER, "KORMED_SUPERVISOR": "engine", "KORMED_WAIT_S": "120",
        }  # fmt: skip

    def start(self, *options: object) -> subprocess.Popen[str]:
        """The installer, under way, in a session of its own."""
        return subprocess.Popen(
            ["unshare", "--net", "sh", str(SCRIPT), *map(str, options)], env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *options: object, code: int = 0) -> str:
        """What it says, on both streams, when it ends with `code`."""
        with self.start(*options) as process:
            out, error = process.communicate(timeout=300)
        assert process.returncode == code, out + error
        return out + error

    def install(self, bundle: Path, *options: str) -> str:
        return self.run(*self.words(bundle), *options)

    def words(self, bundle: Path) -> tuple[object, ...]:
        return ("--bundle", bundle, "--key", self.key, "--accept-unverified")

    def current(self) -> str:
        return os.readlink(self.root / "current").removeprefix("versions/")

    def version_of(self, name: str) -> str:
        """The version that SIGNED of a folder tells."""
        found = re.search(r"^version (\S+)$", (self.root / name / "SIGNED").read_text(), re.M)
        assert found is not None
        return found[1]


@contextmanager
def no_service() -> Iterator[None]:
    """Fails if a service of the installer's name runs here already; leaves none behind."""
    if docker("ps", "--all", "--quiet", "--filter", f"name=^{NAME}$"):
        pytest.fail(f"a container named {NAME} is here, which these tests would remove")
    try:
        yield
    finally:
        subprocess.run([DOCKER, "rm", "--force", NAME], capture_output=True)
