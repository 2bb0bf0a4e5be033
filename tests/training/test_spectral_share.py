import pytest
import torch
from support import synthetic

from vecall.towers.spectral_part import DEFAULT_SHARE
from vecall.towers.two_tower import TwoTower
from vecall.training.scoring import TowerScorer
from vecall.training.spectral_share import SHARES, choose_spectral_share

DATA = synthetic.make_training_data()


def make_towers(**model):
    torch.manual_seed(0)
    return TwoTower(synthetic.make_model_settings("set", **model), {}, {}, DATA.n_items).eval()


def test_share_of_the_highest_validation_score_is_set_in_both_towers():
    towers, tried = make_towers(dim=8, max_trained_dim=6), []

    def validate(scorer):
        assert isinstance(scorer, TowerScorer)
        tried.append(round(towers.spectral_share, 6))
        return {"valid_score": {0.2: 0.5, 0.35: 0.5}.get(tried[-1], 0.1)}

    choose_spectral_share(towers, DATA, validate)
    assert tried == list(SHARES)
    shares = towers.item_tower.parts.share, towers.user_tower.parts.share
    assert [round(float(share), 6) for share in shares] == [0.2, 0.2]  # of equals the smallest


def test_score_that_the_training_has_measured_is_not_measured_again():
    towers, tried = make_towers(dim=8, max_trained_dim=6), []

    def validate(scorer):
        tried.append(round(towers.spectral_share, 6))
        return {"valid_score": 0.1}

    choose_spectral_share(towers, DATA, validate, current_score=0.2)
    assert tried == [share for share in SHARES if share != DEFAULT_SHARE]
    assert towers.spectral_share == pytest.approx(DEFAULT_SHARE)


def test_known_share_is_set_and_without_validation_the_default_stays():
    towers = make_towers(dim=8, max_trained_dim=6)
    choose_spectral_share(towers, DATA, None)
    assert towers.spectral_share == pytest.approx(DEFAULT_SHARE)
    choose_spectral_share(towers, DATA, lambda scorer: 1 / 0, 0.5)
    assert towers.spectral_share == 0.5


def test_towers_without_a_spectral_part_are_not_validated_again():
    choose_spectral_share(make_towers(), DATA, lambda scorer: 1 / 0)
