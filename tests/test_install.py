"""install.sh in a root of its own; a stub on PATH stands for the engine and records its calls."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from bundle_run import ADAPTER, GGUF, UNDECIDED, Workshop
from bundle_tampers import MODEL, TAMPERS, Tamper, flip

SCRIPT = Path(__file__).parents[1] / "kormed_edge/bundle_files/install.sh"
SYSTEM = "/usr/bin:/bin"
STEPS = ("openssl", "sha256sum", "mv", "ln", "rm")
READY = "docker exec kormed python -m kormed_edge.bundle_ready"
RECORD = '#!/bin/sh\n{step}printf "%s\\n" "{name} $*" >>"$CALLS"\n'
STEP = '#!/bin/sh\n{step}exec {real} "$@"\n'
# Counts the calls of all stubs, and kills the whole installation before one of them.
KILL = 'read -r n <"$COUNT"; echo $((n + 1)) >"$COUNT"; [ "$n" != "$KILL_AT" ] || kill -9 0\n'


class Site:
    """A hospital's machine: what the installer may write, and what it called."""

    def __init__(self, folder: Path, key: Path, engine: str = "docker") -> None:
        self.folder, self.key, self.engine = folder, key, engine
        self.root, self.bin = folder / "lib", folder / "bin"
        self.bin.mkdir(parents=True)
        for name in (engine, "systemctl"):
            self.stub(name, RECORD.format(name=name, step=""))
        self.stub("sync", "#!/bin/sh\n")  # the real one waits for everybody's files

    def stub(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def kill_at(self, step: int) -> None:
        """Let the next installation be killed before its call number `step`."""
        for name in ("docker", "systemctl"):
            self.stub(name, RECORD.format(name=name, step=KILL))
        for name in STEPS:
            self.stub(name, STEP.format(real=shutil.which(name, path=SYSTEM), step=KILL))
        self.stub("sync", "#!/bin/sh\n" + KILL)
        (self.folder / "count").write_text("0\n")
        self.step = step

    step, supervisor = -1, "systemd"

    def run(self, *options: object) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.bin}:{SYSTEM}", "KORMED_ROOT": str(self.root),
            "KORMED_ETC": str(self.folder / "etc"), "KORMED_UNITS": str(self.folder / "units"),
            "KORMED_QUADLETS": str(self.folder / "quadlets"),
            "KORMED_ENGINE": self.engine, "KORMED_SUPERVISOR": self.supervisor,
            "CALLS": str(self.folder / "calls"), "COUNT": str(self.folder / "count"),
            "KILL_AT": str(self.step),
        }  # fmt: skip
        return subprocess.run(
            ["sh", SCRIPT, *map(str, options)], env=environment, capture_output=True, text=True,
            check=False, start_new_session=True,
        )  # fmt: skip

    def install(self, bundle: Path, *options: object) -> subprocess.CompletedProcess[str]:
        return self.run("--bundle", bundle, "--key", self.key, *options)

    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def current(self) -> str:
        return os.readlink(self.root / "current").removeprefix("versions/")

    def is_whole(self) -> bool:
        """Whether the current version is complete and as signed."""
        folder = self.root / "current"
        lines = (folder / "INSTALLED").read_text().splitlines()
        pairs = [line.split("  ") for line in lines]
        return len(pairs) > 10 and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            for digest, name in pairs
        )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop")).fill()


@pytest.fixture
def workshop(template: Workshop, tmp_path: Path) -> Workshop:
    return template.copy(tmp_path / "workshop")


@pytest.fixture
def site(workshop: Workshop, tmp_path: Path) -> Site:
    return Site(tmp_path / "site", workshop.public)


def test_installed_bundle_is_whole_loaded_and_started(workshop: Workshop, site: Site) -> None:
    result = site.install(workshop.bundle())
    assert (result.returncode, result.stderr) == (0, "")
    assert site.current() == "demo-3"
    assert site.is_whole()
    assert site.calls() == [
        "docker version",
        f"docker load -i {site.root}/versions/demo-3/image/kormed-edge.tar",
        "docker tag kormed-edge:0.1.0 localhost/kormed-edge:demo-3",
        "systemctl daemon-reload",
        "systemctl enable kormed.service",
        "systemctl restart kormed.service",
        READY,
    ]
    assert "kormed: ready at http://127.0.0.1:8080" in result.stdout
    unit = (site.folder / "units/kormed.service").read_text()
    assert f"EnvironmentFile={site.root}/current/service.env" in unit
    assert not (site.root / "incoming").exists()
    assert not (site.root / "lock").exists()


def test_podman_gets_a_quadlet(workshop: Workshop, tmp_path: Path) -> None:
    site = Site(tmp_path / "site", workshop.public, "podman")
    assert site.install(workshop.bundle()).returncode == 0
    assert (site.folder / "quadlets/kormed.container").exists()
    assert not (site.folder / "units/kormed.service").exists()
    assert site.calls()[3:5] == ["systemctl daemon-reload", "systemctl restart kormed.service"]


def test_parts_are_joined(workshop: Workshop, site: Site) -> None:
    assert site.install(workshop.bundle(max_file_bytes=4000)).returncode == 0
    assert (site.root / "current" / MODEL).read_bytes() == GGUF
    assert not list((site.root / "current").rglob("*.part-*"))
    assert site.is_whole()


def test_user_of_the_container_can_read_what_root_kept_to_itself(
    workshop: Workshop, site: Site
) -> None:
    folder = workshop.bundle()
    (folder / MODEL).chmod(0o600)
    (folder / "model").chmod(0o700)
    site.install(folder)
    assert (site.root / "current/model").stat().st_mode & 0o777 == 0o755
    assert (site.root / "current" / MODEL).stat().st_mode & 0o777 == 0o644


def test_without_systemd_the_engine_keeps_the_service_up(workshop: Workshop, site: Site) -> None:
    site.supervisor = "engine"
    (site.folder / "etc").mkdir(parents=True)
    (site.folder / "etc/site.env").write_text(
        "KORMED_PORT=9000\nKORMED_SERVE_OPTIONS=--slots 8\nKORMED_ENGINE_OPTIONS=--gpus all\n"
    )
    assert site.install(workshop.bundle()).returncode == 0
    assert site.calls()[3:] == [
        "docker stop --time 30 kormed",
        "docker rm --force kormed",
        "docker run --detach --name kormed --restart unless-stopped --pull never --network host "
        "--read-only --cap-drop ALL --security-opt no-new-privileges "
        f"--volume {site.root}/versions/demo-3:/bundle:ro,z --env KORMED_PORT=9000 --gpus all "
        "localhost/kormed-edge:demo-3 serve --model /bundle/model/demo-Q4_K_M.gguf --port 9000 "
        "--slots 8",
        READY,
    ]


def test_without_systemd_it_is_run_as_the_unit_runs_it() -> None:
    unit = (SCRIPT.parent / "kormed.service").read_text()
    words = [word for word in SCRIPT.read_text().split("start_with_engine() {")[1].split()
             if word.startswith("--")]  # fmt: skip
    later = words[: words.index("--port") + 1]
    assert "--cap-drop" in later
    assert set(later) - {"--detach", "--restart"} <= set(unit.split())


def not_ready(site: Site, version: str) -> None:
    """An engine whose service answers unless `version` is current."""
    site.stub("sleep", "#!/bin/sh\n")
    site.stub("docker", RECORD.format(name="docker", step="") + (
        f'case $1-$(readlink {site.root}/current) in exec-*-{version}) exit 1 ;; esac\n'
    ))  # fmt: skip


def test_version_that_does_not_become_ready_gives_way_to_the_one_before(
    workshop: Workshop, site: Site
) -> None:
    for version in ("1", "2"):
        site.install(workshop.bundle(version))
    not_ready(site, "3")
    result = site.install(workshop.bundle("3"))
    assert (result.returncode, "back to demo-2" in result.stderr) == (1, True)
    assert site.current() == "demo-2"
    assert os.readlink(site.root / "previous") == "versions/demo-1"
    not_ready(site, "none")
    assert site.install(workshop.bundle("3", out="again")).returncode == 0
    assert site.current() == "demo-3"


def test_first_version_that_does_not_become_ready_fails_and_stays(
    workshop: Workshop, site: Site
) -> None:
    not_ready(site, "3")
    result = site.install(workshop.bundle("3"))
    assert (result.returncode, "not ready after" in result.stderr) == (1, True)
    assert site.current() == "demo-3"


@pytest.mark.parametrize("tamper", TAMPERS.values(), ids=TAMPERS)
def test_changed_bundle_is_refused_and_nothing_is_run(
    tamper: Tamper, workshop: Workshop, site: Site
) -> None:
    folder = workshop.bundle()
    tamper(workshop, folder)
    result = site.install(folder)
    assert result.returncode == 1
    assert result.stderr.startswith("kormed: ")
    assert site.calls() == ["docker version"]
    assert not list((site.root / "versions").iterdir())
    assert not (site.root / "current").is_symlink()
    assert not (site.folder / "etc").exists()


def test_key_of_the_first_time_is_kept(workshop: Workshop, site: Site) -> None:
    site.install(workshop.bundle("1"))
    assert site.run("--bundle", workshop.bundle("2")).returncode == 0
    assert site.current() == "demo-2"


def test_without_a_key_nothing_is_installed(workshop: Workshop, site: Site) -> None:
    result = site.run("--bundle", workshop.bundle())
    assert (result.returncode, "no public key" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("installed", "offered", "fits"),
    [("1.9", "1.10", True), ("1.10", "1.9", False), ("2", "10", True), ("3.0.1", "3", False)],
)
def test_older_version_is_refused_unless_told(
    installed: str, offered: str, fits: bool, workshop: Workshop, site: Site
) -> None:
    site.install(workshop.bundle(installed))
    older = workshop.bundle(offered)
    assert site.install(older).returncode == (0 if fits else 1)
    assert site.current() == f"demo-{offered if fits else installed}"
    assert site.install(older, "--replace").returncode == 0
    assert site.current() == f"demo-{offered}"


def test_bundle_of_another_name_is_refused_unless_told(workshop: Workshop, site: Site) -> None:
    site.install(workshop.bundle())
    other = workshop.bundle("9", name="other")
    assert "demo is installed, this is other" in site.install(other).stderr
    assert site.install(other, "--replace").returncode == 0


def test_unverified_bundle_needs_consent(workshop: Workshop, site: Site) -> None:
    folder = workshop.bundle(gate=UNDECIDED, unverified=True)
    assert "UNVERIFIED" in site.install(folder).stderr
    assert site.calls() == ["docker version"]
    result = site.install(folder, "--accept-unverified")
    assert (result.returncode, "not for clinical use" in result.stdout) == (0, True)


def test_installing_again_changes_nothing(workshop: Workshop, site: Site) -> None:
    folder = workshop.bundle()
    site.install(folder)
    before = (site.root / "current/SIGNED").stat().st_mtime_ns
    assert site.install(folder).returncode == 0
    assert (site.root / "current/SIGNED").stat().st_mtime_ns == before
    assert not (site.root / "previous").is_symlink()


def test_same_version_with_other_contents_is_refused(workshop: Workshop, site: Site) -> None:
    site.install(workshop.bundle())
    other = workshop.bundle(out="other", max_file_bytes=4000)
    assert "installed with other contents" in site.install(other).stderr


def test_rollback_goes_to_the_version_before_and_back(workshop: Workshop, site: Site) -> None:
    for version in ("1", "2"):
        site.install(workshop.bundle(version))
    for expected in ("demo-1", "demo-2"):
        assert site.run("--rollback").returncode == 0
        assert site.current() == expected
        assert f"docker tag kormed-edge:0.1.0 localhost/kormed-edge:{expected}" in site.calls()[-5:]


def test_rollback_to_nothing_or_to_a_damaged_version_is_refused(
    workshop: Workshop, site: Site
) -> None:
    site.install(workshop.bundle("1"))
    assert "no version before" in site.run("--rollback").stderr
    site.install(workshop.bundle("2"))
    flip(site.root / "versions/demo-1" / MODEL)
    assert f"not as signed: {MODEL}: FAILED" in site.run("--rollback").stderr
    assert site.current() == "demo-2"


@pytest.fixture
def base(workshop: Workshop, site: Site) -> Path:
    """An installed bundle, which updates stand on."""
    folder = workshop.bundle("3", max_file_bytes=4000)
    site.install(folder)
    return folder


UPDATE = ("--accept-unverified",)


def test_update_takes_model_and_image_from_its_base(
    base: Path, workshop: Workshop, site: Site
) -> None:
    assert site.install(workshop.update(base), *UPDATE).returncode == 0
    assert site.current() == "demo-4"
    assert site.is_whole()
    folder = site.root / "current"
    assert (folder / MODEL).read_bytes() == GGUF
    assert (folder / MODEL).samefile(site.root / "versions/demo-3" / MODEL)
    assert (folder / "adapter/adapter.gguf").read_bytes() == ADAPTER
    assert f"docker load -i {site.root}/versions/demo-4/image/kormed-edge.tar" in site.calls()


def test_update_can_be_rolled_back_and_outlives_its_base(
    base: Path, workshop: Workshop, site: Site
) -> None:
    site.install(workshop.update(base), *UPDATE)
    assert site.run("--rollback").returncode == 0
    assert site.current() == "demo-3"
    assert site.run("--rollback").returncode == 0
    shutil.rmtree(site.root / "versions/demo-3")
    assert site.current() == "demo-4"
    assert site.is_whole()


def test_update_without_its_base_is_refused(workshop: Workshop, site: Site) -> None:
    site.install(workshop.bundle("2"))
    result = site.install(workshop.update(workshop.bundle("3")), *UPDATE)
    assert "this update stands on demo-3, which is not installed" in result.stderr
    assert site.current() == "demo-2"


def test_update_of_another_base_with_the_same_name_is_refused(
    base: Path, workshop: Workshop, site: Site
) -> None:
    update = workshop.update(base)
    flip(site.root / "versions/demo-3" / MODEL)
    result = site.install(update, *UPDATE)
    assert f"not what this update stands on: {MODEL}: FAILED" in result.stderr
    assert site.current() == "demo-3"
    assert not (site.root / "versions/demo-4").exists()


def test_update_whose_base_lacks_a_file_is_refused(
    base: Path, workshop: Workshop, site: Site
) -> None:
    (site.root / "versions/demo-3/model/manifest.json").unlink()
    result = site.install(workshop.update(base), *UPDATE)
    assert "the installed demo-3 has no model/manifest.json" in result.stderr


def test_uninstall_leaves_the_key(workshop: Workshop, site: Site) -> None:
    site.install(workshop.bundle())
    assert site.run("--uninstall").returncode == 0
    assert list(site.root.iterdir()) == []
    assert list((site.folder / "units").iterdir()) == []
    assert (site.folder / "etc/bundle.pub").exists()
    assert site.run("--uninstall").returncode == 0


def test_two_installations_at_once_are_refused(workshop: Workshop, site: Site) -> None:
    (site.root / "lock").mkdir(parents=True)
    with subprocess.Popen(["sh", "-c", "read -r line", SCRIPT], stdin=subprocess.PIPE) as other:
        (site.root / "lock/pid").write_text(f"{other.pid}\n")
        assert "another installation is running" in site.install(workshop.bundle()).stderr
        assert (site.root / "lock/pid").exists()
        assert other.stdin is not None
        other.stdin.close()


def test_lock_of_a_process_that_is_something_else_now_is_no_lock(
    workshop: Workshop, site: Site
) -> None:
    (site.root / "lock").mkdir(parents=True)
    (site.root / "lock/pid").write_text(f"{os.getpid()}\n")
    assert site.install(workshop.bundle()).returncode == 0


def test_killed_at_any_step_a_whole_version_stays_current(workshop: Workshop, site: Site) -> None:
    site.install(workshop.bundle("2"))
    newer = workshop.bundle("3", max_file_bytes=4000)
    seen = []
    for step in range(100):
        now = Site(site.folder.with_name(f"site-{step}"), site.key)
        shutil.copytree(site.root, now.root, symlinks=True)
        now.kill_at(step)
        if now.install(newer).returncode == 0:
            break
        seen.append(now.current())
        assert now.is_whole()
        now.kill_at(-1)
        assert now.install(newer).returncode == 0
        assert now.current() == "demo-3"
        assert now.is_whole()
        assert os.readlink(now.root / "previous") == "versions/demo-2"
        shutil.rmtree(now.folder)
    assert len(seen) > 20
    assert seen == sorted(seen)
    assert set(seen) == {"demo-2", "demo-3"}


def test_script_is_plain_posix_shell() -> None:
    for shell in ("sh", "dash", "busybox"):
        if path := shutil.which(shell):
            words = [path, "sh"] if shell == "busybox" else [path]
            subprocess.run([*words, "-n", SCRIPT], check=True)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "kormed.service"
    text = (SCRIPT.parent / "kormed.service").read_text()
    unit.write_text(text.replace("/usr/bin/docker", "/bin/true"))  # which is here for sure
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", SCRIPT], check=True)
