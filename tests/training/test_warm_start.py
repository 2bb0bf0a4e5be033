import numpy as np
import polars as pl
import pytest
import torch
from support import synthetic
from support.memory import measure_peak_bytes

from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.id_map import IntegerIdMap, build_id_map
from vecall.data.vocabulary import MISSING, OOV
from vecall.errors import TrainingError
from vecall.schema import CategoryFeature, NumericFeature, TagsFeature
from vecall.towers.two_tower import TwoTower
from vecall.training.warm_start import ModelVocabulary, warm_start

FEATURES = {"brand": CategoryFeature(), "a.tag": TagsFeature(), "price": NumericFeature()}


def make_vocabulary(ids, brands, tags, *, features=FEATURES, id_type="string"):
    frame = pl.DataFrame({"brand": brands, "a.tag": tags, "price": [1.0] * len(brands)})
    encoder = FeatureEncoder.fit(features, frame)
    return ModelVocabulary(build_id_map(pl.Series(ids), id_type), encoder, encoder)


def make_towers(vocabulary, seed, **model):
    torch.manual_seed(seed)
    specs = vocabulary.item_encoder.specs
    return TwoTower(synthetic.make_model_settings(**model), specs, specs, len(vocabulary.item_id_map))


OLD = make_vocabulary(["b", "d", "e"], ["nike", "puma"], [["x", "z"], []])
NEW = make_vocabulary(["a", "b", "c", "e"], ["asics", "puma", None], [["y", "z"], [], []])


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_rows_are_matched_by_id_and_value_and_new_rows_start_as_unknown(hidden):
    old_towers, new_towers = make_towers(OLD, 1, hidden=hidden), make_towers(NEW, 2, hidden=hidden)
    with torch.no_grad():
        old_towers.item_id_embedding.weight[-1] = 7.0
    old = {name: weight.clone() for name, weight in old_towers.state_dict().items()}
    warm_start(new_towers, NEW, old, OLD)
    new = new_towers.state_dict()
    # Old rows are b, d, e and the unknown item; new rows are a, b, c, e and the unknown item.
    item_ids = "item_id_embedding.weight"
    assert torch.equal(new[item_ids], old[item_ids][[3, 0, 3, 2, 3]])
    tables = {item_ids}
    for side in ("item", "user"):
        layers = f"{side}_tower.combiner.feature_embedding.layers"
        brand, tag = f"{layers}.feature_brand.weight", f"{layers}.feature_a%2Etag.table.weight"
        assert torch.equal(new[brand], old[brand][[MISSING, OOV, OOV, 3]])  # asics is new, puma is not
        assert torch.equal(new[tag], old[tag][[MISSING, OOV, OOV, 3]])
        tables |= {brand, tag}
    other_layers = new.keys() - tables
    assert other_layers
    for name in other_layers:
        assert torch.equal(new[name], old[name]), name


def test_new_items_without_features_start_at_random_where_the_unknown_item_is_zero():
    """Without id dropout the unknown item is never trained; a gradient at length 0 would be divided by 1e-12."""
    features = FeatureEncoder.fit({}, pl.DataFrame())
    old, new = (
        ModelVocabulary(build_id_map(pl.Series(ids), "string"), features, features)
        for ids in (["b", "d", "e"], ["a", "b", "c", "e"])
    )
    old_towers, new_towers = make_towers(old, 1), make_towers(new, 2)
    initial = new_towers.item_id_embedding.weight.detach().clone()
    old_ids = old_towers.item_id_embedding.weight.detach()
    assert not old_ids[-1].any()
    warm_start(new_towers, new, old_towers.state_dict(), old)
    new_ids = new_towers.item_id_embedding.weight.detach()
    assert torch.equal(new_ids[[0, 2]], initial[[0, 2]])  # a and c are new
    assert new_ids[[0, 2]].any(dim=1).all()
    assert torch.equal(new_ids[[1, 3, 4]], old_ids[[0, 2, 3]])


def test_spectral_vectors_are_not_those_of_the_older_run():
    """They need not be in it: a run from before there were any is a start for the trained part."""
    model = {"encoder": "set", "dim": 8}
    older = make_towers(OLD, 1, **model), make_towers(OLD, 1, **model | {"dim": 10, "max_trained_dim": 8})
    for old_towers in older:
        new_towers = make_towers(NEW, 2, **model | {"dim": 10, "max_trained_dim": 8})
        new_towers.spectral_vectors.fill_(3.0)
        warm_start(new_towers, NEW, old_towers.state_dict(), OLD)
        assert (new_towers.spectral_vectors == 3).all()
        new_ids, old_ids = new_towers.item_id_embedding.weight, old_towers.item_id_embedding.weight
        assert torch.equal(new_ids, old_ids[[3, 0, 3, 2, 3]])


def test_all_weights_are_copied_for_an_equal_vocabulary():
    old_towers, new_towers = make_towers(OLD, 1), make_towers(OLD, 2)
    warm_start(new_towers, OLD, old_towers.state_dict(), OLD)
    new = new_towers.state_dict()
    assert all(torch.equal(weight, new[name]) for name, weight in old_towers.state_dict().items())


@pytest.mark.parametrize(
    ("vocabulary", "model", "message"),
    [
        (NEW, {"encoder": "attention"}, r"other layers .*user_tower\.history_encoder"),
        (NEW, {"hidden": (4,)}, "other layers"),
        (NEW, {"item_id": False}, r"other layers .*item_id_embedding\.weight"),
        (
            make_vocabulary(["a"], ["x"], [[]], features={"brand": CategoryFeature()}),
            {},
            r"other layers .*layers\.feature_",
        ),
        (NEW, {"dim": 16}, r"\[4, 8\] in the older run, expected \[5, 16\]"),
        (make_vocabulary([1, 2], ["x", "y"], [[], []], id_type="integer"), {}, "of type string, expected integer"),
    ],
)
def test_older_model_with_other_layers_shapes_or_id_type_is_refused(vocabulary, model, message):
    new_towers = make_towers(vocabulary, 2, **model)
    with pytest.raises(TrainingError, match=f"--init: .*{message}"):
        warm_start(new_towers, vocabulary, make_towers(OLD, 1).state_dict(), OLD)


def test_result_does_not_depend_on_the_initial_weights():
    old_towers, expected = make_towers(OLD, 1), make_towers(NEW, 2)
    warm_start(expected, NEW, old_towers.state_dict(), OLD)
    new_towers = make_towers(NEW, 3)
    warm_start(new_towers, NEW, old_towers.state_dict(), OLD)
    actual = new_towers.state_dict()
    assert all(torch.equal(weight, actual[name]) for name, weight in expected.state_dict().items())


def test_no_copy_of_a_table_is_made():
    rows, dim = 2**19, 64
    features = FeatureEncoder.fit({}, pl.DataFrame())
    old, new = (ModelVocabulary(IntegerIdMap(np.arange(rows) + first), features, features) for first in (0, 9))
    table_bytes = 4 * rows * dim
    towers, weights = make_towers(new, 1, dim=dim), make_towers(old, 2, dim=dim).state_dict()
    assert measure_peak_bytes(lambda _: warm_start(towers, new, weights, old)) < 0.5 * table_bytes
    name, old_rows = "item_id_embedding.weight", torch.arange(rows + 1)
    # The bound tells a copy of the whole table apart.
    assert measure_peak_bytes(lambda _: towers.state_dict()[name].copy_(weights[name][old_rows])) > 0.9 * table_bytes
