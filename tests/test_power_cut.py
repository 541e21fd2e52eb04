"""SIGKILL of the installer and all that it started, at random moments, with a real engine.

The service is a small image with busybox's web server that serves the bundle it was given, because
the edge image would take ten times as long to load. The engine itself lives on, unlike in a true
power cut; what the disk then holds is the file system's affair, for which the installer syncs.
"""

import os
import random
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest
from bundle_run import Workshop
from real_site import NAME, RealSite, docker, no_service

pytestmark = pytest.mark.docker

TIMES = 50
BASE = os.environ.get("BASE_IMAGE") or "python:3.11.13-slim-bookworm"
DOCKERFILE = f"""\
FROM {BASE} AS busybox
RUN apt-get update && apt-get install -y --no-install-recommends busybox-static
WORKDIR /tree/bin
RUN cp /bin/busybox . && ln -s busybox sh && ln -s busybox wget && ln -s busybox httpd \\
    && echo ok > /tree/readyz \\
    && printf '#!/bin/sh\\nwget -qO /dev/null http://127.0.0.1:$KORMED_PORT/readyz\\n' > python \\
    && printf '#!/bin/sh\\n[ -f "$3" ] || exit 1\\ntrap "exit 0" TERM\\n\\
httpd -f -p 127.0.0.1:$KORMED_PORT -h / & wait\\n' > kormed \\
    && chmod 755 python kormed
FROM scratch
COPY --from=busybox /tree /
ENTRYPOINT ["/bin/kormed"]
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workshop, Path, Path]:
    """Two versions with a small service."""
    workshop = Workshop(tmp_path_factory.mktemp("workshop")).fill()
    context = workshop.folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    docker("build", "--tag", "kormed-small:1", str(context), timeout=600)
    docker("save", "kormed-small:1", "--output", str(workshop.image))
    one, two = (workshop.bundle(v, max_file_bytes=4000) for v in ("1", "2"))
    return workshop, one, two


@pytest.fixture
def site(bundles: tuple[Workshop, Path, Path], tmp_path: Path) -> Iterator["CutSite"]:
    with no_service():
        site = CutSite(tmp_path, bundles[0].public)
        yield site
        site.run("--uninstall")


class CutSite(RealSite):
    def __init__(self, folder: Path, key: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        super().__init__(folder, key, PORT=str(self.port))

    def cut(self, bundle: Path, seconds: float) -> bool:
        """Start an installation and kill all of it; whether it was still under way."""
        with self.start(*self.words(bundle), "--replace") as process:
            try:
                process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return True
        return False

    def serving(self) -> str | None:
        """The version that answers over HTTP; None if none does within two seconds."""
        for _ in range(20):
            connection = HTTPConnection("127.0.0.1", self.port, timeout=2)
            try:
                connection.request("GET", "/bundle/SIGNED")
                lines = connection.getresponse().read().decode().splitlines()
                return lines[2].removeprefix("version ")
            except (OSError, HTTPException):
                time.sleep(0.1)
            finally:
                connection.close()
        return None

    def remove(self, version: str) -> None:
        """Forget a version that is not current, so that it is copied anew."""
        subprocess.run(["rm", "-rf", str(self.root / f"versions/demo-{version}")], check=True)


def test_killed_at_random_the_service_answers_or_the_next_run_mends_it(
    bundles: tuple[Workshop, Path, Path], site: CutSite, capsys: pytest.CaptureFixture[str]
) -> None:
    _, one, two = bundles
    chance, seen, under_way = random.Random(71875), Counter[str](), 0
    started = time.monotonic()
    site.install(one)
    longest = 1.2 * (time.monotonic() - started)
    for number in range(TIMES):
        if fresh := number % 5 == 4:
            site.run("--uninstall")
        before = None if fresh else site.version_of("current")
        target, name = (one, "1") if before == "2" else (two, "2")
        site.remove(name)
        under_way += site.cut(target, chance.uniform(0, longest))
        found = site.serving()
        assert found in (before, name, None)
        seen["none" if found is None else "old" if found == before else "new"] += 1
        site.install(target, "--replace")
        assert site.serving() == name
        assert site.version_of("current") == name
    with capsys.disabled():
        print(f"\n{TIMES} power cuts, {under_way} under way; answered afterwards: {dict(seen)}")
    assert under_way > TIMES / 2
    assert docker("inspect", "--format={{.State.Status}}", NAME) == "running"
