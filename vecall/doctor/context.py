"""What the checks read: tables, settings, and what was measured of a model or a release. All of it is frozen."""

from collections.abc import Mapping
from dataclasses import dataclass

from vecall.arrays import Rows, Scores, Vectors
from vecall.config import Config
from vecall.data.dataset import Dataset
from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.split import Split
from vecall.doctor.finding import Message


@dataclass(frozen=True)
class RecallGap:
    """Recall of one thing beside that of another, of the same users.

    Attributes:
        recall: The first, in [0, 1].
        other_recall: The second.
        standard_error: Of their difference; 0 for a single user.
    """

    recall: float
    other_recall: float
    standard_error: float

    @property
    def is_above(self) -> bool:
        """Whether the first is above the second by more than chance gives: two standard errors."""
        return self.recall - self.other_recall > 2 * self.standard_error

    @property
    def is_below(self) -> bool:
        """Whether the first is below the second by more than chance gives."""
        return self.other_recall - self.recall > 2 * self.standard_error


@dataclass(frozen=True)
class RankingFacts:
    """What a model ranks for a sample of S test users.

    Attributes:
        recall_key: Such as "recall@100"; k is at most a tenth of the catalogue.
        user_count: Users that the gaps were measured on.
        baseline_gaps: The model beside each baseline: "popularity", "ease", "cooccurrence".
        skipped_baselines: Why a baseline is not in `baseline_gaps`, by name.
        top_rows: [S, k] best unseen rows of each user, best first; -1 after the last.
        item_counts: [N] number of users of each item in training.
        target_rows: Rows of all held-out items of the users.
    """

    recall_key: str
    user_count: int
    baseline_gaps: Mapping[str, RecallGap]
    skipped_baselines: Mapping[str, str]
    top_rows: Rows
    item_counts: Scores
    target_rows: Rows


@dataclass(frozen=True)
class OrderFacts:
    """Recall on validation histories as they are beside the same histories shuffled.

    Attributes:
        recall_key: Such as "recall@100".
        user_count: Users with a history of at least 3 items.
        model: Of the model.
        probe: Of recent co-occurrence, which reads the order: it shows whether there is one. None if it was too large.
    """

    recall_key: str
    user_count: int
    model: RecallGap
    probe: RecallGap | None


@dataclass(frozen=True)
class LabelRange:
    """Labels of the interactions table.

    Attributes:
        minimum: The lowest.
        maximum: The highest.
        share_of_minimum: Share of rows with the lowest.
    """

    minimum: float
    maximum: float
    share_of_minimum: float


@dataclass(frozen=True)
class TrainingFacts:
    """Course of a training.

    Attributes:
        epochs: Lines of metrics.jsonl: `epoch` from 0, `loss`, `valid_score`, `valid_recall`.
        best_epoch: Epoch of the evaluated weights, from 0.
        held_out_share_trained: Share of the held-out interactions that the weights were trained on, through `--init`.
    """

    epochs: tuple[Mapping[str, float], ...]
    best_epoch: int
    held_out_share_trained: float = 0.0


@dataclass(frozen=True)
class AnnFacts:
    """ANN recall of a release's index.

    Attributes:
        k: Rows per answer.
        recall: On vectors of the test users, or, without tables, of the golden queries.
        recorded_recall: On the golden queries when the release was published; None if it was not recorded.
        target: `index.target_recall` of the release.
        query_count: Number of queries of `recall`.
    """

    k: int
    recall: float
    recorded_recall: float | None
    target: float
    query_count: int


@dataclass(frozen=True)
class ServedVectorFacts:
    """Vectors that are computed now beside those that a release serves, of the same users or items.

    Attributes:
        golden_difference: Largest difference of a component of the golden queries' vectors, relative to the longest
            vector.
        user_count: Users compared between the tables and the release; 0 without tables.
        differing_user_share: Share of them whose two vectors have a cosine below 0.99.
        item_count: Items compared.
        differing_item_share: Share of them whose two vectors have a cosine below 0.99.
    """

    golden_difference: float | None = None
    user_count: int = 0
    differing_user_share: float = 0.0
    item_count: int = 0
    differing_item_share: float = 0.0


@dataclass(frozen=True)
class AnswerFacts:
    """What can take items out of an answer.

    Attributes:
        n_items: N.
        k: Largest number of items that is asked for, of `index.ks`, at most N.
        seen_counts: [users] Number of distinct items of each user's history.
        null_shares: Share of items without a value, by attribute.
        blank_attributes: Attributes with values that differ only in case or in blanks at their ends.
    """

    n_items: int
    k: int
    seen_counts: Rows
    null_shares: Mapping[str, float]
    blank_attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DoctorContext:
    """All that the checks read. A check finds nothing where a part that it needs is None.

    Attributes:
        config: Settings.
        dataset: The tables.
        split: The split of `dataset`.
        encoders: Feature encoders of items and users, as fitted in training.
        labels: Range of the label column; None without one.
        training: Course of the training; None for a store.
        ranking: What the model ranks; None if it cannot be measured.
        order: Recall on shuffled histories.
        item_vectors: [n, D] vectors of a sample of trained items.
        ann: ANN recall of a release.
        served: Vectors of a release beside those computed now.
        answers: What can take items out of an answer.
        unexamined: Sentences about what was not examined, and why.
    """

    config: Config | None = None
    dataset: Dataset | None = None
    split: Split | None = None
    encoders: tuple[FeatureEncoder, FeatureEncoder] | None = None
    labels: LabelRange | None = None
    training: TrainingFacts | None = None
    ranking: RankingFacts | None = None
    order: OrderFacts | None = None
    item_vectors: Vectors | None = None
    ann: AnnFacts | None = None
    served: ServedVectorFacts | None = None
    answers: AnswerFacts | None = None
    unexamined: tuple[Message, ...] = ()
