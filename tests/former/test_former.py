"""Paths as they were: what docs/api.md once named under them is the same object as in its room."""

import importlib
import pkgutil

import pytest

from lightning_prune import former, masks

NAMES = [one.name for one in pkgutil.iter_modules(former.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_a_former_path_gives_the_names_of_its_room(name):
    there = importlib.import_module(f"lightning_prune.{name}")
    room = importlib.import_module(there.__doc__.split("``")[3])
    assert there.__all__
    for one in there.__all__:
        # the spreads of an allocation are functions of numbers, and lie among the masks
        assert getattr(there, one) is (getattr(room, one, None) or getattr(masks, one))
