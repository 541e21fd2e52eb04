"""TensorBoard as an option: transformers' own callback, writing into a folder of the run."""

from pathlib import Path
from typing import Any

from kormed_edge.errors import TrainError


def tensorboard_callback(folder: Path) -> Any:
    """A trainer callback that writes event files into `folder`.

    Raises `TrainError` if the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainError(
            "train.tensorboard is true, and the package tensorboard is not installed",
            "the extra tensorboard",
            "pip install 'kormed-edge[tensorboard]', or --set train.tensorboard=false",
        ) from None
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))
