"""One page that shows a run: prune channels of a small network, cut them out, export it, and look at what came of it.

python examples/page.py --epochs 12
"""

import argparse
from pathlib import Path

from digits import ConvNet, Digits
from lightning.pytorch import Trainer, seed_everything

from lightning_prune import CoreMLExport, MagnitudePruningCallback

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--out", type=Path, default=Path("runs/page"))
args = parser.parse_args()

rule = {"scheduler": {"begin": 0.1, "end": 0.6, "frequency": 10}, "target_sparsity": 0.5, "granularity": "per_channel"}
pruning = MagnitudePruningCallback(
    {"global_config": rule},
    slim=True,
    export=CoreMLExport(args.out / "digits.mlpackage"),
    page=args.out / "run.html",
)
seed_everything(0, verbose=False)
trainer = Trainer(max_epochs=args.epochs, accelerator="cpu", callbacks=[pruning], default_root_dir=args.out)
trainer.fit(ConvNet(), datamodule=Digits())

if pruning.page_error is not None:
    raise SystemExit(f"There is no page: {pruning.page_error}")
print(f"Open this page in a browser: {pruning.page.as_uri()}")
