import stat
import subprocess
from pathlib import Path

import pytest

from kormed_edge.errors import BundleError
from kormed_edge.site_key import sign_files, site_key


def test_the_key_is_made_once_for_its_owner_alone(own_home: Path) -> None:
    first = site_key()
    assert stat.S_IMODE((own_home / "site.key").stat().st_mode) == 0o600
    assert site_key().private_bytes_raw() == first.private_bytes_raw()


def test_a_key_open_to_others_is_refused(own_home: Path) -> None:
    site_key()
    (own_home / "site.key").chmod(0o644)
    with pytest.raises(BundleError, match="open to others"):
        site_key()


def test_a_home_that_can_not_be_made_has_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="KORMED_HOME"):
        site_key(tmp_path / "file" / "home")


def verifies(folder: Path) -> bool:
    command = "openssl pkeyutl -verify -pubin -inkey site.pub -rawin -in a -sigfile a.sig"
    return subprocess.run(command.split(), cwd=folder, capture_output=True).returncode == 0


def test_openssl_alone_checks_a_signature(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("report")
    sign_files(tmp_path, ["a"], site_key())
    assert verifies(tmp_path)
    (tmp_path / "a").write_text("Report")
    assert not verifies(tmp_path)
