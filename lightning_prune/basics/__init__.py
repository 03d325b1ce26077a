"""Small things that every room uses: tables, paths, names of classes, values of users.

Tables need rich and texts need yaml: both are loaded when they are first used, since most programs need neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_prune.basics.class_names import is_a
from lightning_prune.basics.compiled import is_compiled, uncompiled_name, unwrap
from lightning_prune.basics.copies import copy_untrained
from lightning_prune.basics.files import put_in_place, recover, writing_to
from lightning_prune.basics.lazy import lazy_names
from lightning_prune.basics.locks import check_lock, lock, unlock, unlocked_state
from lightning_prune.basics.matching import check_pattern, fullmatch
from lightning_prune.basics.paths import home
from lightning_prune.basics.tensor_files import (
    NotLoaded,
    check_claims,
    has_values,
    import_safetensors,
    is_plain,
    load_checkpoint,
    load_content,
    load_tensors,
    read_safetensors,
    write_safetensors,
)
from lightning_prune.basics.values import (
    as_flag,
    as_fraction,
    as_whole,
    plain_list,
    plain_number,
    plain_text,
    yaml_hint,
)

if TYPE_CHECKING:
    from lightning_prune.basics.tables import DottedText, as_text, literal, new_table, printable
    from lightning_prune.basics.yaml_text import load_yaml

__all__ = [
    "DottedText",
    "NotLoaded",
    "as_flag",
    "as_fraction",
    "as_text",
    "as_whole",
    "check_claims",
    "check_lock",
    "check_pattern",
    "copy_untrained",
    "fullmatch",
    "has_values",
    "home",
    "import_safetensors",
    "is_a",
    "is_compiled",
    "is_plain",
    "lazy_names",
    "literal",
    "load_checkpoint",
    "load_content",
    "load_tensors",
    "load_yaml",
    "lock",
    "new_table",
    "plain_list",
    "plain_number",
    "plain_text",
    "printable",
    "put_in_place",
    "read_safetensors",
    "recover",
    "uncompiled_name",
    "unlock",
    "unlocked_state",
    "unwrap",
    "write_safetensors",
    "writing_to",
    "yaml_hint",
]

_LAZY = {
    **dict.fromkeys(("DottedText", "as_text", "literal", "new_table", "printable"), "lightning_prune.basics.tables"),
    "load_yaml": "lightning_prune.basics.yaml_text",
}

__getattr__ = lazy_names(globals(), _LAZY)
