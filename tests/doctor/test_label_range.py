"""Range of a label column over files."""

import pytest
from support.doctor import make_config

from vecall.doctor.context import LabelRange
from vecall.doctor.label_range import read_label_range


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["0,5", "0,-1"], LabelRange(-1.0, 5.0, 0.25)),
        (["0,0,10"], LabelRange(0.0, 10.0, 2 / 3)),
        (["x,4", "2"], LabelRange(2.0, 4.0, 0.5)),
        (["x"], None),
    ],
)
def test_range_of_all_files(tmp_path, files, expected):
    paths = []
    for index, labels in enumerate(files):
        paths.append(str(tmp_path / f"{index}.csv"))
        (tmp_path / f"{index}.csv").write_text("user,item,stars\n" + "".join(f"u,i,{x}\n" for x in labels.split(",")))
    names = {"user": "user", "item": "item", "label": "stars"}
    config = make_config(data={"interactions": paths}, schema={"interactions": names})
    assert read_label_range(config.data, config.schema_.interactions) == expected


def test_without_a_label_there_is_none():
    config = make_config()
    assert read_label_range(config.data, config.schema_.interactions) is None
