"""Starting the processes of a run."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from leanlabel.config import EngineSettings
from leanlabel.errors import InputError

# Banks and statistics are kept equal by leanlabel.dist; broadcasting buffers would overwrite live ones.
# Newer torch versions have another name for the switch.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BUFFER_SYNC: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


def make_fabric(settings: EngineSettings) -> Fabric:
    """Start (or join) the processes that the settings ask for.

    Raises:
        InputError: devices that this machine does not have.
    """
    world = settings.devices * settings.nodes
    several = world > 1 or settings.strategy == "ddp"
    accelerator = settings.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if settings.precision == "16-mixed" and accelerator == "cpu":
        raise InputError("engine.precision: 16-mixed needs a GPU.", "Use bf16-mixed on a processor.")
    strategy: Any = DDPStrategy(**_NO_BUFFER_SYNC) if several else "auto"
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=strategy,
            # Fabric's own float64 mode hands float32 back from every network; the loop makes the method double.
            precision="32-true" if settings.precision == "64-true" else settings.precision,
        )
    except (RuntimeError, ValueError) as error:  # a device that is not there
        raise InputError(
            f"engine: accelerator {settings.accelerator} with {settings.devices} devices cannot be had here "
            f"({str(error).splitlines()[0].rstrip('.')}).",
            "See `leanlabel doctor` for what there is.",
        ) from error
    fabric.launch()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return fabric
