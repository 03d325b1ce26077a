import lightning_prune


def test_every_public_name_is_there_and_sorted():
    assert sorted(lightning_prune.__all__) == lightning_prune.__all__
    for name in lightning_prune.__all__:
        assert getattr(lightning_prune, name) is not None
    assert set(lightning_prune.__all__) <= set(dir(lightning_prune))
