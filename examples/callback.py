"""The callback in five lines: prune a network to 80 % while it trains.

python examples/callback.py --epochs 15
"""

import argparse

from digits import ConvNet, Digits
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import MagnitudePruningCallback

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=15)
parser.add_argument("--out", default="runs/callback")
args = parser.parse_args()

pruning = MagnitudePruningCallback(
    {
        # from 10 % to 60 % of the run, every 20 optimizer steps, along the cubic of Zhu and Gupta
        "global_config": {"scheduler": {"begin": 0.1, "end": 0.6, "frequency": 20}, "target_sparsity": 0.8},
        # of every 4 weights in a row, 2 are zero
        "module_name_configs": {"head.0": {"scheduler": {"end": 0.6}, "n_m_ratio": [2, 4]}, "head.2": None},
    }
)
best = ModelCheckpoint(args.out, monitor="accuracy", mode="max")  # the best of those at the target sparsity
trainer = Trainer(max_epochs=args.epochs, accelerator="cpu", callbacks=[pruning, best], default_root_dir=args.out)
model, data = ConvNet(), Digits()
trainer.fit(model, datamodule=data)

print(pruning.report())
trainer.test(model, datamodule=data)
print(f"The best network at the target: {best.best_model_path}, accuracy {best.best_model_score:.2%}")
