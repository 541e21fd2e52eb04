"""Write requirements-edge.txt and requirements-train.txt: the images' packages with their hashes.

    make pin-hashes

Pip itself tells them, from the index that it is set up to use: nothing is downloaded but source
archives. Python 3.11 on Linux, both processors. A package that pip would take from a folder of this
machine is refused, since its hash would be of no use elsewhere.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MACHINES = ("x86_64", "aarch64")
SOURCES = ("kiwipiepy-model", "llama-cpp-python", "rouge-score")
"""What the index has as source alone."""
HEAD = """\
# What {image} installs, with hashes for Python 3.11 on x86-64 and 64-bit Arm. Generated from
# {pins} by `make pin-hashes`; see docs/containers.md.
"""


def platforms(machine: str) -> list[str]:
    """Names of the wheels that run on Debian 12, best first."""
    names = [f"manylinux_2_{glibc}_{machine}" for glibc in range(36, 16, -1)]
    older = ["manylinux2014"] if machine == "aarch64" else ["manylinux2014", "manylinux2010"]
    more = [] if machine == "aarch64" else [f"manylinux_2_12_{machine}", f"manylinux_2_5_{machine}"]
    return [*names, *(f"{name}_{machine}" for name in older), *more]


def ask_pip(pins: list[str], options: list[str]) -> dict[str, str]:
    """Pins with the SHA-256 of the file that pip would install for each."""
    with tempfile.TemporaryDirectory() as folder:
        listed, report = Path(folder) / "pins.txt", Path(folder) / "report.json"
        listed.write_text("\n".join(pins))
        subprocess.run(
            [
                sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed",
                "--no-deps", "--quiet", "--disable-pip-version-check", "--report", report,
                "--target", folder, *options, "-r", listed,
            ],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
        found = json.loads(report.read_text())["install"]
    return {_pin(entry): _digest(entry) for entry in found}


def _pin(entry: dict) -> str:
    return f"{canonicalize_name(entry['metadata']['name'])}=={entry['metadata']['version']}"


def _digest(entry: dict) -> str:
    origin = entry["download_info"]
    if origin["url"].startswith("file:"):
        raise SystemExit(
            f"{_pin(entry)} comes from a folder of this machine, not from an index.\n"
            "Run again without it, for instance: "
            "env -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null make pin-hashes"
        )
    return origin["archive_info"]["hashes"]["sha256"]


def hashes_of(pins: list[str]) -> dict[str, set[str]]:
    """Every pin with the hashes of its files: one for each processor, or one for all."""
    binary = [pin for pin in pins if not pin.startswith(SOURCES)]
    found: dict[str, set[str]] = {pin: set() for pin in pins}
    for machine in MACHINES:
        tags = [word for name in platforms(machine) for word in ("--platform", name)]
        options = ["--python-version", "3.11", "--only-binary=:all:", *tags]
        for pin, digest in ask_pip(binary, options).items():
            found[pin].add(digest)
    source = [pin for pin in pins if pin.startswith(SOURCES)]
    for pin, digest in ask_pip(source, ["--no-binary", ",".join(SOURCES)]).items():
        found[pin].add(digest)
    return found


def pins_in(path: Path) -> dict[str, str]:
    """Pins by package, of a constraints file."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): f"{canonicalize_name(name)}=={v}" for name, v in lines}


def needed_by(extras: tuple[str, ...]) -> set[str]:
    """Packages that extras of this kit need, with all that these need, as installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][e] for e in extras)]
    left = [Requirement(text) for listed in lists for text in listed]
    known: set[tuple[str, str]] = set()
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if name == project["name"] or (name, extra) in known:
                continue
            known.add((name, extra))
            for text in importlib.metadata.requires(name) or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    left.append(needed)
    return {name for name, _ in known}


def write(image: str, source: str, pins: list[str]) -> None:
    lines = [HEAD.format(image=image, pins=source)]
    for pin, digests in sorted(hashes_of(pins).items()):
        lines += [pin, *(f" \\\n    --hash=sha256:{digest}" for digest in sorted(digests)), "\n"]
    path = ROOT / f"requirements-{image.removeprefix('Dockerfile.')}.txt"
    path.write_text("".join(lines))
    print(f"{path.name}: {len(pins)} packages, {path.stat().st_size:,} bytes")


def main() -> None:
    edge = pins_in(ROOT / "constraints-edge.txt")
    write("Dockerfile.edge", "constraints-edge.txt", list(edge.values()))
    kit = pins_in(ROOT / "constraints.txt")
    train = needed_by(("edge", "eval", "train"))
    write("Dockerfile.train", "constraints.txt", [kit[name] for name in sorted(train & kit.keys())])
    if missing := sorted(train - kit.keys()):
        print(f"without a pin, hence not there: {', '.join(missing)}")


if __name__ == "__main__":
    main()
