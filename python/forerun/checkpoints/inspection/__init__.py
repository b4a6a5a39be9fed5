"""What a checkpoint directory holds, told from its tensors and its config, not from its name."""

from forerun.checkpoints.inspection.describe import fit_problems, inspect
from forerun.checkpoints.inspection.result import Inspection
from forerun.checkpoints.inspection.tensors import TensorInfo, read_tensors

__all__ = ["Inspection", "TensorInfo", "fit_problems", "inspect", "read_tensors"]
