import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kormed_edge.errors import TrainError
from train.tensorboard import tensorboard_callback


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainError, match=r"pip install 'kormed-edge\[tensorboard\]'"):
        tensorboard_callback(tmp_path)


def test_events_go_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    class Writer:
        def __init__(self, log_dir: str) -> None:
            self.log_dir = log_dir

    package: Any = ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    assert tensorboard_callback(tmp_path).tb_writer.log_dir == str(tmp_path)
