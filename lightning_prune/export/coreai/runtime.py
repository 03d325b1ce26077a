"""Run a saved ``.aimodel`` with Apple's own runtime."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_prune.export.coreai.installed import CoreAI
from lightning_prune.export.coreai.silence import silence

__all__ = ["Loaded", "loaded"]

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own: the caller may be in a running one already, as in a notebook."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="Core AI", daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self) -> None:
        """End the loop and its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Loaded:
    """A loaded file that can be called.

    Attributes:
        input_names: What goes in.
        output_names: What comes out.
    """

    def __init__(self, core: CoreAI, loop: Loop, function: Any) -> None:
        self.core, self.loop, self.function = core, loop, function
        self.input_names = tuple(function.desc.input_names)
        self.output_names = tuple(function.desc.output_names)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name; integers go in and come out with 32 bits."""
        arrays = {name: self.core.runtime.NDArray(to_array(inputs[name])) for name in self.input_names}
        with silence():
            found = self.loop.run(self.function(arrays))
        return {name: torch.from_numpy(np.array(value.numpy())) for name, value in found.items()}


@contextlib.contextmanager
def loaded(core: CoreAI, path: Path) -> Iterator[Loaded]:
    """Compile a file for this machine and load it."""
    asset = core.authoring.AIModelAsset.load(path)
    loop = Loop()
    try:
        execution = asset.executable()
        with silence():
            model = loop.run(enter(execution))
        try:
            with silence():
                function = model.load_function("main")
            yield Loaded(core, loop, function)
        finally:
            with silence():
                loop.run(leave(execution))
    finally:
        loop.close()


async def enter(execution: Any) -> Any:
    """Begin an asynchronous context; within the loop, for some of its parts want to be made in one."""
    return await execution.__aenter__()


async def leave(execution: Any) -> None:
    """End an asynchronous context."""
    await execution.__aexit__(None, None, None)


def to_array(value: Tensor) -> Any:
    """A tensor as the runtime takes it."""
    if value.dtype == torch.int64:
        value = value.to(torch.int32)
    return np.ascontiguousarray(value.detach().numpy())
