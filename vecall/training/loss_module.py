"""Losses of a batch: encodes its items and users, draws its negatives, and scores them.

A batch has P targets, each with the user as of its position: P = B samples of a `SampleBatch`, or P positions of the
windows of a `WindowBatch`. The P targets of a `SetBatch` share the B users that they were hidden from.
"""

from collections.abc import Iterable, Iterator

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from vecall.towers.ensemble import split_ensemble
from vecall.towers.row_lookup import take_rows
from vecall.towers.two_tower import TwoTower
from vecall.training.any_batch import AnyBatch, TargetBatch
from vecall.training.batches import SampleBatch
from vecall.training.chunked_softmax import chunked_cross_entropy
from vecall.training.data import take
from vecall.training.distributed import ProcessGroup
from vecall.training.item_lists import deduplicate_rows, fill_padding_with_targets, mark_listed_items
from vecall.training.losses import binary_cross_entropy, multi_target_cross_entropy, sampled_softmax_loss
from vecall.training.negatives import HardNegativeSampler, sample_candidates, sample_uniform_negatives
from vecall.training.plan import TrainingPlan
from vecall.training.seeding import seed_process
from vecall.training.sets import SetBatch
from vecall.training.settings import TrainingSettings

_HIDDEN_CONTEXT = 0.1  # share of the values of a context feature


class LossModule(LightningModule):
    """The losses of `TwoTowerModule`, which sets the attributes.

    Attributes:
        towers: Towers to train.
        settings: Loss and negatives.
        plan: What was resolved for this training.
        log_temperature: Logarithm of the temperature.
        frequencies: [N] share of each item among the samples.
        candidate_items: [M] rows of the items used as negatives.
        candidate_index: [N] index of each item in `candidate_items`. For an item not in it 0, as for the first
            candidate: look up only targets and items of histories, which are all candidates, and padding.
    """

    towers: TwoTower
    settings: TrainingSettings
    plan: TrainingPlan
    log_temperature: torch.nn.Parameter
    frequencies: Tensor
    candidate_items: Tensor
    candidate_index: Tensor
    _group: ProcessGroup | None
    _device_features: dict[str, dict[str, Tensor]]
    _hard_negative_sampler: HardNegativeSampler

    def _compute_loss(self, batch: AnyBatch) -> Tensor:
        if isinstance(batch, SetBatch):
            is_sampled = self.plan.loss == "sampled_softmax"
            return self._compute_sampled_set_loss(batch) if is_sampled else self._compute_set_loss(batch)
        match self.plan.loss:
            case "softmax":
                return self._compute_softmax_loss(batch)
            case "sampled_softmax":
                return self._compute_sampled_softmax_loss(batch)
            case _:
                assert isinstance(batch, SampleBatch)  # noqa: S101 - for mypy; Config refuses bce with causal towers and sets
                return self._compute_bce_loss(batch)

    def _seed_own_draws(self) -> None:
        """Let this process draw dropout and hidden ids of its own; negatives must have been drawn before."""
        if self._group is not None:
            seed_process(self._group.rank)

    def _encode_items(self, rows: Tensor) -> Tensor:
        """Encode [M] item rows → [M, D]."""
        return self.towers.encode_items(rows, take(self._device_features["items"], rows))

    def _encode_users(self, item_vectors: Tensor, batch: AnyBatch) -> Tensor:
        """Encode the users of a batch, whose input items are rows of [M, D] vectors.

        Returns:
            [P, D], or [B, D] for a `SetBatch`: vectors of length 1 divided by the temperature.
        """
        users = batch.users if isinstance(batch, SetBatch) else batch.target_users
        features = take(self._device_features["users"], users)
        if batch.context_rows is not None:
            features |= self._hide_context(take(self._device_features["context"], batch.context_rows))
        return batch.encode_users(self.towers, item_vectors, features) / self.log_temperature.exp()

    def _hide_context(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make missing values, which are zeros, of a share of the [P, ...] context features, in training alone.

        Requests without context are encoded well only if training has such.
        """
        if not self.towers.training:
            return features
        return {
            name: values * (torch.rand(len(values), *[1] * (values.dim() - 1), device=values.device) >= _HIDDEN_CONTEXT)
            for name, values in features.items()
        }

    def _zip_members(self, users: Tensor, items: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each ensemble member's parts of [P, D] users and [M, D] items; each member has its own loss."""
        ensemble_size = self.towers.settings.ensemble_size
        return zip(split_ensemble(users, ensemble_size), split_ensemble(items, ensemble_size), strict=True)

    def _average_losses(self, losses: Iterable[Tensor]) -> Tensor:
        """Compute the losses of the members and return their mean.

        In float32 with any precision of the towers: in bfloat16, scores that differ by less than 1 % would be equal.
        """
        with torch.autocast(self.device.type, enabled=False):
            return torch.stack(list(losses)).mean()

    def _compute_softmax_loss(self, batch: TargetBatch) -> Tensor:
        self._seed_own_draws()
        item_vectors = self._encode_items(self.candidate_items)  # [M, D]
        targets = self.candidate_index[batch.target_items]  # [P]
        batch = batch.replace_input_items(self.candidate_index[batch.input_items])
        masked_items = (
            fill_padding_with_targets(batch.histories, batch.lengths, targets) if self.settings.mask_history else None
        )
        user_vectors = self._encode_users(item_vectors, batch)  # [P, D]
        return self._average_losses(
            chunked_cross_entropy(
                users, items, targets, masked_items, batch.weights, label_smoothing=self.settings.label_smoothing
            )
            for users, items in self._zip_members(user_vectors, item_vectors)
        )

    def _compute_sampled_softmax_loss(self, batch: TargetBatch) -> Tensor:
        """Softmax over sampled candidates with the logQ correction, and over hard negatives without it.

        The expected softmax denominator equals that over the catalogue. A hard negative counts once per target, so it
        is ignored where it was also sampled; all other items are weighted by 1 / expected count.
        """
        users, items = batch.step_targets
        sampled = sample_candidates(self.settings.negatives, users, items, self.candidate_items, self.frequencies)
        hard_negatives = self._hard_negative_sampler.sample(users, self.settings.negatives.hard)
        hard_items, is_hard = map(batch.select_part, hard_negatives)  # [P, H]
        self._seed_own_draws()
        distinct, (input_items, targets, candidates, hard) = deduplicate_rows(
            batch.input_items, batch.target_items, sampled.rows, hard_items
        )
        item_vectors = self._encode_items(distinct)  # [M, D]
        batch = batch.replace_input_items(input_items)
        ignored = self._list_ignored_items(batch, targets)  # [P, L + 1]
        ignore_mask = torch.cat(
            [
                mark_listed_items(
                    torch.cat([ignored, torch.where(is_hard, hard, targets.unsqueeze(1))], dim=1),
                    candidates,
                    len(distinct),
                )
                | sampled.mark_own(batch.target_users),
                (hard.unsqueeze(2) == ignored.unsqueeze(1)).any(2) | ~is_hard,
            ],
            dim=1,
        )  # [P, C + H]
        log_counts = sampled.log_expected_counts
        log_expected_counts = torch.cat([log_counts, log_counts.new_zeros(hard.shape[1])])  # [C + H]
        user_vectors = self._encode_users(item_vectors, batch)  # [P, D]
        scored_vectors = _take_together(item_vectors, targets, candidates, hard)

        def compute_loss(users: Tensor, items: Tensor) -> Tensor:
            target_items, shared_scores, own_scores = _score_looked_up(users, items, len(targets), hard.shape)
            return sampled_softmax_loss(
                positive_scores=(users * target_items).sum(1),
                candidate_scores=torch.cat([shared_scores, own_scores], dim=1),
                log_expected_counts=log_expected_counts,
                ignore_mask=ignore_mask,
                weights=batch.weights,
                label_smoothing=self.settings.label_smoothing,
            )

        return self._average_losses(
            compute_loss(users, items) for users, items in self._zip_members(user_vectors, scored_vectors)
        )

    def _list_ignored_items(self, batch: TargetBatch, targets: Tensor) -> Tensor:
        """List the items that are no negatives of a target: itself and, with `mask_history`, its history.

        Args:
            batch: Batch with renumbered input items.
            targets: [P] positives, renumbered likewise.

        Returns:
            [P, 1] or [P, L + 1] items, some of them several times.
        """
        own = targets.unsqueeze(1)
        return (
            torch.cat([own, fill_padding_with_targets(batch.histories, batch.lengths, targets)], dim=1)
            if self.settings.mask_history
            else own
        )

    def _compute_set_loss(self, batch: SetBatch) -> Tensor:
        """Softmax of each user over all items, with the user's hidden items as targets."""
        self._seed_own_draws()
        item_vectors = self._encode_items(self.candidate_items)  # [M, D]
        targets = self.candidate_index[batch.target_items]  # [P]
        batch = batch.replace_input_items(self.candidate_index[batch.input_items])
        user_vectors = self._encode_users(item_vectors, batch)  # [B, D]
        owners = batch.target_owners
        listed = self._list_items_of_users(batch, targets)

        def compute_loss(users: Tensor, items: Tensor) -> Tensor:
            scores = users @ items.T  # [B, M]
            own_scores = scores[owners, targets]
            return multi_target_cross_entropy(
                scores.index_put(listed, scores.new_tensor(float("-inf"))),
                own_scores,
                owners,
                batch.weights,
                label_smoothing=self.settings.label_smoothing,
            )

        return self._average_losses(
            compute_loss(users, items) for users, items in self._zip_members(user_vectors, item_vectors)
        )

    def _list_items_of_users(self, batch: SetBatch, targets: Tensor) -> tuple[Tensor, Tensor]:
        """List the items that are no negatives of a user: the targets and, with `mask_history`, the items read.

        Args:
            batch: Batch with renumbered input items.
            targets: [P] targets, renumbered likewise.

        Returns:
            [n] users in 0 .. B - 1, and [n] items.
        """
        if not self.settings.mask_history:
            return batch.target_owners, targets
        return torch.cat([batch.target_owners, batch.input_owners]), torch.cat([targets, batch.input_items])

    def _compute_sampled_set_loss(self, batch: SetBatch) -> Tensor:
        """Softmax of each user over sampled candidates with the logQ correction, over hard negatives and targets.

        The targets of a user are in the user's softmax with certainty, and are not corrected.
        """
        users, items = batch.step_targets
        sampled = sample_candidates(self.settings.negatives, users, items, self.candidate_items, self.frequencies)
        hard_negatives = self._hard_negative_sampler.sample(users, self.settings.negatives.hard)
        first_targets = batch.target_counts.cumsum(0) - batch.target_counts  # [B] of each user
        hard_items, is_hard = (batch.select_part(drawn)[first_targets] for drawn in hard_negatives)  # [B, H]
        self._seed_own_draws()
        distinct, (input_items, targets, candidates, hard) = deduplicate_rows(
            batch.input_items, batch.target_items, sampled.rows, hard_items
        )
        item_vectors = self._encode_items(distinct)  # [M, D]
        batch = batch.replace_input_items(input_items)
        listed = torch.zeros(len(batch.users), len(distinct), dtype=torch.bool, device=distinct.device)
        listed[self._list_items_of_users(batch, targets)] = True  # [B, M]
        is_ignored_hard = ~is_hard | listed.gather(1, hard)
        listed[is_hard.nonzero()[:, 0], hard[is_hard]] = True  # counted once, as a hard negative
        ignore_mask = torch.cat([listed[:, candidates], is_ignored_hard], dim=1)  # [B, C + H]
        log_counts = sampled.log_expected_counts
        user_vectors = self._encode_users(item_vectors, batch)  # [B, D]
        scored_vectors, owners = _take_together(item_vectors, targets, candidates, hard), batch.target_owners

        def compute_loss(users: Tensor, items: Tensor) -> Tensor:
            target_items, shared_scores, own_scores = _score_looked_up(users, items, len(targets), hard.shape)
            scores = torch.cat([shared_scores - log_counts, own_scores], dim=1)  # [B, C + H]
            return multi_target_cross_entropy(
                scores.masked_fill(ignore_mask, float("-inf")),
                (users[owners] * target_items).sum(1),
                owners,
                batch.weights,
                label_smoothing=self.settings.label_smoothing,
            )

        return self._average_losses(
            compute_loss(users, items) for users, items in self._zip_members(user_vectors, scored_vectors)
        )

    def _compute_bce_loss(self, batch: SampleBatch) -> Tensor:
        """Binary cross-entropy of the labeled samples and of `negatives.uniform` sampled negatives of each positive."""
        targets = self.candidate_index[batch.step_targets[1]]  # of the whole batch
        drawn = sample_uniform_negatives(self.settings.negatives.uniform, len(self.candidate_items), targets)
        negatives = self.candidate_items[batch.select_part(drawn)]  # [B, n]
        self._seed_own_draws()
        paired_items = torch.cat([batch.target_items.unsqueeze(1), negatives], dim=1)  # [B, 1 + n]
        distinct, (input_items, paired) = deduplicate_rows(batch.input_items, paired_items)
        item_vectors = self._encode_items(distinct)  # [M, D]
        labels = torch.zeros(paired.shape, device=paired.device)
        labels[:, 0] = batch.labels
        is_counted = (batch.labels > 0).unsqueeze(1).expand_as(labels).clone()
        is_counted[:, 0] = True  # a sample with label 0 is counted itself, but has no sampled negatives
        weights = None if batch.weights is None else batch.weights.unsqueeze(1).expand_as(labels)[is_counted]
        user_vectors = self._encode_users(item_vectors, batch.replace_input_items(input_items))  # [B, D]
        paired_vectors = take_rows(item_vectors, paired)  # [B, 1 + n, D]
        loss = self._average_losses(
            binary_cross_entropy(_score_own_items(users, items)[is_counted], labels[is_counted], weights)
            for users, items in self._zip_members(user_vectors, paired_vectors)
        )
        return loss * batch.compute_pair_weight(self.settings.negatives.uniform)


def _take_together(vectors: Tensor, *rows: Tensor) -> Tensor:
    """Look up rows of [M, D] vectors, those of several tensors after each other → [n, D].

    Together, since the gradient of each look-up takes [M, D] numbers.
    """
    return take_rows(vectors, torch.cat([part.flatten() for part in rows]))


def _score_looked_up(
    users: Tensor, items: Tensor, n_targets: int, hard_shape: torch.Size
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the vectors of targets, candidates and hard negatives that were looked up together, and score the last two.

    Args:
        users: [U, D].
        items: [n_targets + C + U * H, D].
        n_targets: Number of targets, which come first.
        hard_shape: (U, H).

    Returns:
        [n_targets, D] targets, [U, C] scores of candidates, and [U, H] of hard negatives.
    """
    n_hard = hard_shape.numel()
    targets, candidates, hard = torch.split(items, [n_targets, len(items) - n_targets - n_hard, n_hard])
    return targets, users @ candidates.T, _score_own_items(users, hard.view(*hard_shape, items.shape[1]))


def _score_own_items(users: Tensor, items: Tensor) -> Tensor:
    """Score for each of P users n items of its own: [P, D] users and [P, n, D] items → [P, n]."""
    return (items @ users.unsqueeze(-1)).squeeze(-1)
