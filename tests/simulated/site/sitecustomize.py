"""Each process that finds this on its path has the simulated device, and `auto` places models there."""
import torch

import prunekit.models
import tests.simulated.device  # noqa: F401

prunekit.models._placement = lambda device: {"device": torch.device("sim:0")}
