"""Files for Apple's Core AI, written with its converter and run by its own runtime."""

from __future__ import annotations

from lightning_prune.export.coreai.asset import Asset, read_asset, read_foreign_asset
from lightning_prune.export.coreai.export import CoreAIExport
from lightning_prune.export.coreai.installed import import_coreai

__all__ = [
    "Asset",
    "CoreAIExport",
    "import_coreai",
    "read_asset",
    "read_foreign_asset",
]
