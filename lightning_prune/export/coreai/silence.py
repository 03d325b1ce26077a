"""Keep what the converter and the runtime print off the user's screen, down to what compiled code writes."""

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

__all__ = ["silence"]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Send standard output and standard error nowhere, in Python and below it; both are restored whatever happens.

    The converter prints through Python, which in a notebook is no file; the runtime, which is compiled, writes to the
    file descriptors 1 and 2. Warnings of either are about versions of torch and are left out as well.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        nowhere = stack.enter_context(tempfile.TemporaryFile())
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            stack.enter_context(_redirected(stream, descriptor, nowhere.fileno()))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextlib.contextmanager
def _redirected(stream: object, descriptor: int, target: int) -> Iterator[None]:
    """Let a file descriptor stand for another file; one that is closed stays closed."""
    _flush(stream)
    try:
        kept = os.dup(descriptor)
    except OSError:  # a process without a terminal may have closed it
        yield
        return
    try:
        os.dup2(target, descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


def _flush(stream: object) -> None:
    """Write out what was printed before, so that it does not get lost."""
    with contextlib.suppress(Exception):  # no stream at all, or a closed one
        stream.flush()  # type: ignore[attr-defined]
