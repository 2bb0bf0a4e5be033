import polars as pl
import pytest
import torch
from support import synthetic

from vecall.data.feature_encoder import MISSING, OOV, FeatureEncoder
from vecall.data.id_map import build_id_map
from vecall.errors import TrainingError
from vecall.schema import CategoryFeature, NumericFeature, TagsFeature
from vecall.towers.two_tower import TwoTower
from vecall.training.warm_start import ModelVocabulary, warm_start

FEATURES = {"brand": CategoryFeature(), "a.tag": TagsFeature(), "price": NumericFeature()}


def known(ids, brands, tags, *, features=FEATURES, id_type="string"):
    frame = pl.DataFrame({"brand": brands, "a.tag": tags, "price": [1.0] * len(brands)})
    encoders = FeatureEncoder.fit(features, frame)
    return ModelVocabulary(build_id_map(pl.Series(ids), id_type), encoders, encoders)


def towers(knows, seed, **model):
    torch.manual_seed(seed)
    shapes = knows.item_encoders.shapes
    return TwoTower(synthetic.make_model_settings(**model), shapes, shapes, len(knows.items))


OLD = known(["b", "d", "e"], ["nike", "puma"], [["x", "z"], []])
NEW = known(["a", "b", "c", "e"], ["asics", "puma", None], [["y", "z"], [], []])


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_rows_are_found_again_by_id_and_value_and_new_ones_start_as_the_unknown(hidden):
    before, after = towers(OLD, 1, hidden=hidden), towers(NEW, 2, hidden=hidden)
    with torch.no_grad():
        before.item_id_embedding.weight[-1] = 7.0
    old = {name: x.clone() for name, x in before.state_dict().items()}
    warm_start(after, NEW, old, OLD)
    new = after.state_dict()
    # Old rows b, d, e and the unknown; new rows a, b, c, e and the unknown.
    assert torch.equal(new["item_ids.weight"], old["item_ids.weight"][[3, 0, 3, 2, 3]])
    for side in ("item", "user"):
        brand, tag = (f"{side}.combine.inputs.parts.of_{name}.weight" for name in ("brand", "a%2Etag.table"))
        assert torch.equal(new[brand], old[brand][[MISSING, OOV, OOV, 3]])  # asics is new, puma not
        assert torch.equal(new[tag], old[tag][[MISSING, OOV, OOV, 3]])
    tables = [name for name in new if new[name].shape != old[name].shape]
    for name in new.keys() - {"item_ids.weight"} - {n for n in new if "of_brand" in n or "tag" in n} - set(tables):
        assert torch.equal(new[name], old[name]), name


def test_an_equal_catalogue_gives_an_equal_model():
    before, after = towers(OLD, 1), towers(OLD, 2)
    warm_start(after, OLD, before.state_dict(), OLD)
    assert all(torch.equal(x, after.state_dict()[name]) for name, x in before.state_dict().items())


@pytest.mark.parametrize(
    ("newer", "model", "what"),
    [
        (NEW, {"encoder": "attention"}, "other layers .*user.history"),
        (NEW, {"hidden": (4,)}, "other layers"),
        (NEW, {"item_id": False}, "other layers .*item_ids"),
        (known(["a"], ["x"], [[]], features={"brand": CategoryFeature()}), {}, "other layers .*of_"),
        (NEW, {"dim": 16}, r"\[4, 8\] and is \[5, 16\]"),
        (known([1, 2], ["x", "y"], [[], []], id_type="integer"), {}, "item ids are of type string"),
    ],
)
def test_other_layers_are_refused(newer, model, what):
    with pytest.raises(TrainingError, match=f"--init: .*{what}"):
        warm_start(towers(newer, 2, **model), newer, towers(OLD, 1).state_dict(), OLD)
