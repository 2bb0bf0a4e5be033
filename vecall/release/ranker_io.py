"""Files of a ranker: `ranker.json` and `ranker.lightgbm.txt` of a release or of a run."""

import logging
from pathlib import Path

from pydantic import ValidationError

from vecall.errors import InvalidReleaseError, RankerUnavailableError, VecallError
from vecall.ranking.lightgbm_ranker import LIGHTGBM, LightGbmRanker, RankerSpec, UnavailableRanker
from vecall.ranking.ranker import NamedRanker
from vecall.ranking.ranker_info import RankerInfo
from vecall.release.file_io import translate_write_errors
from vecall.release.manifest import read_release_file

logger = logging.getLogger(__name__)

RANKER_SPEC_FILE, RANKER_MODEL_FILE = "ranker.json", "ranker.lightgbm.txt"


def save_ranker(spec: RankerSpec, model_text: str, directory: Path) -> None:
    """Write a ranker into a directory.

    Args:
        spec: What the model reads.
        model_text: The model in LightGBM's own text format.
        directory: Exists.
    """
    (directory / RANKER_SPEC_FILE).write_text(spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (directory / RANKER_MODEL_FILE).write_text(model_text, encoding="utf-8")


def copy_ranker(info: RankerInfo, source_dir: Path, draft_dir: Path) -> None:
    """Copy the files of the ranker that `info` names, if any, from a run or a release to a draft.

    Raises:
        InvalidReleaseError: A file is missing.
        StoreError: The draft cannot be written.
    """
    if info.name == "none":
        return
    for file in (RANKER_SPEC_FILE, RANKER_MODEL_FILE):
        content = read_release_file(source_dir, file)
        with translate_write_errors(draft_dir):
            (draft_dir / file).write_bytes(content)


def load_ranker(directory: Path, info: RankerInfo) -> NamedRanker | None:
    """Load the ranker of a verified release.

    Where the package that it needs is missing, the release is served nevertheless: a warning is logged, and the ranker
    raises `RankerUnavailableError` whenever it is called.

    Returns:
        The ranker; None if the release has none.

    Raises:
        InvalidReleaseError: A file is missing or cannot be read, or they do not match each other.
    """
    if info.name == "none":
        return None
    spec_content, model_content = (read_release_file(directory, file) for file in (RANKER_SPEC_FILE, RANKER_MODEL_FILE))
    try:
        spec = RankerSpec.model_validate_json(spec_content)
    except ValidationError as error:
        raise InvalidReleaseError(
            f"{directory / RANKER_SPEC_FILE} does not describe a ranker ({error}); publish the release again",
            file=RANKER_SPEC_FILE,
        ) from error
    try:
        return NamedRanker(LIGHTGBM, LightGbmRanker.from_text(model_content.decode(), spec))
    except RankerUnavailableError as error:
        logger.warning("release %s has a ranker, but recall's order is served: %s", directory.name, error)
        return NamedRanker(LIGHTGBM, UnavailableRanker(str(error)))
    except (VecallError, UnicodeDecodeError) as error:
        raise InvalidReleaseError(f"{directory / RANKER_MODEL_FILE}: {error}", file=RANKER_MODEL_FILE) from error
