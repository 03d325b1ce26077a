"""Keep from the user's screen what torch prints while a network is captured."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

import torch

__all__ = ["quiet_torch"]


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep from the screen what torch prints when capturing fails, and from the graph what no converter knows."""
    fast, disabled = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    # The fused attention kernel of nn.TransformerEncoderLayer is one opaque operation.
    torch.backends.mha.set_fastpath_enabled(False)
    # A failure's whole graph is logged by loggers with handlers of their own; the exception says what matters.
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fast)
