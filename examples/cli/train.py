"""Pruning from LightningCLI: the callback and its rules stand in a YAML file.

python examples/cli/train.py fit --config examples/cli/prune.yaml
"""

import sys
from pathlib import Path

from lightning.pytorch.cli import LightningCLI

sys.path.insert(0, str(Path(__file__).parents[1]))
from digits import ConvNet, Digits

if __name__ == "__main__":
    LightningCLI(ConvNet, Digits)
