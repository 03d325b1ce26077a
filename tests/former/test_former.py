"""Paths as they were: what docs/api.md once named under them is the same object as in its room."""

import importlib
import pkgutil

import pytest

from lightning_prune import former, masks

NAMES = [found.name for found in pkgutil.iter_modules(former.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_a_former_path_gives_the_names_of_its_room(name):
    there = importlib.import_module(f"lightning_prune.{name}")
    room = importlib.import_module(there.__doc__.split("``")[3])
    assert there.__all__
    for name in there.__all__:
        # the spreads of an allocation are functions of numbers, and lie among the masks
        assert getattr(there, name) is (getattr(room, name, None) or getattr(masks, name))
