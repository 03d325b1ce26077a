"""What can go wrong, as one tree.

* PruningError
    * ConfigError (also ValueError): a value, key or name in a configuration that cannot work.
    * LifecycleError (also RuntimeError): a method called at a moment when it cannot do its work.
    * ExportError: a Core ML package that could not be made, or is not what it must be.
    * CheckpointError: a saved state that is damaged, or belongs to another model or configuration.
"""

__all__ = ["CheckpointError", "ConfigError", "ExportError", "LifecycleError", "PruningError"]


class PruningError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigError(PruningError, ValueError):
    """A value, key or name in a configuration cannot work: says what must hold, what came, what to write."""


class LifecycleError(PruningError, RuntimeError):
    """A method was called at a moment when it cannot do its work: says what to call first."""


class ExportError(PruningError):
    """A Core ML package could not be written, or did not pass its verification."""


class CheckpointError(PruningError):
    """A saved state is damaged, or belongs to another model or configuration."""
