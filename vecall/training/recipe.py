"""One training step, as Lightning wants it: encode what occurs in the batch, score it, take the loss."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from vecall.errors import TrainingError
from vecall.towers.two_tower import TwoTower
from vecall.training.batches import Batch, EpochBatches, Samples, labelled_samples, positive_samples
from vecall.training.draws import seed_step
from vecall.training.losses import bce_pairs, full_softmax, sampled_softmax
from vecall.training.negatives import draw_candidates, draw_uniform
from vecall.training.problem import Problem, take, tensors
from vecall.training.settings import TrainingSettings

# A step's [B, N] logits beyond this many are replaced by sampled ones.
_MOST_LOGITS = 128_000_000
# Looking at a loss waits for the device, so not every step is looked at.
_LOOK_EVERY = 50


def resolve_loss(settings: TrainingSettings, n_items: int) -> str:
    """`auto` made a choice: the full softmax while its logits fit, else a sampled one."""
    if settings.loss != "auto":
        return settings.loss
    return "softmax" if settings.batch * n_items <= _MOST_LOGITS else "sampled_softmax"


class Recipe(LightningModule):
    """The towers with their loss, as Lightning wants them."""

    def __init__(self, towers: TwoTower, problem: Problem, settings: TrainingSettings) -> None:
        super().__init__()
        self.towers = towers
        self.problem = problem
        self.settings = settings
        self.loss_name = resolve_loss(settings, problem.n_items)
        learned = settings.temperature == "learned"
        start = 0.1 if settings.temperature == "learned" else settings.temperature
        self.log_temperature = torch.nn.Parameter(torch.tensor(start).log(), requires_grad=learned)
        self._samples = self._make_samples()
        self._on_device: dict[str, dict[str, Tensor]] = {}

    def _make_samples(self) -> Samples:
        if self.loss_name == "bce":
            return labelled_samples(self.problem.train, self.problem.negatives)
        return positive_samples(self.problem.train)

    def train_dataloader(self) -> EpochBatches:
        """The coming epoch's batches; Lightning asks anew before each."""
        return EpochBatches(
            self._samples,
            self.problem.train,
            length=self.towers.settings.history.length,
            batch=self.settings.batch,
            seed=self.settings.seed,
            epoch=self.current_epoch,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; without weight decay it is Adam."""
        return torch.optim.AdamW(self.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Batches know how to move."""
        del dataloader_idx
        return batch.to(device)

    def on_fit_start(self) -> None:
        """Features stay on the device for the whole fit."""
        self._on_device = {
            "items": tensors(self.problem.item_features, self.device),
            "users": tensors(self.problem.user_features, self.device),
            "frequencies": {"all": torch.from_numpy(self.problem.frequencies).to(self.device)},
        }

    def training_step(self, batch: Batch, step: int) -> Tensor:
        """The loss of one batch."""
        seed_step(self.settings.seed, self.current_epoch, step)
        match self.loss_name:
            case "softmax":
                loss = self._full_softmax(batch)
            case "sampled_softmax":
                loss = self._sampled_softmax(batch)
            case _:
                loss = self._bce(batch)
        if step % _LOOK_EVERY == 0 and not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}, step {step}; "
                "lower training.lr or raise training.temperature"
            )
        return loss

    def _encode(self, rows: Tensor) -> Tensor:
        return self.towers.encode_items(rows, take(self._on_device["items"], rows))

    def _encode_users(self, item_vectors: Tensor, histories: Tensor, batch: Batch) -> Tensor:
        features = take(self._on_device["users"], batch.users)
        return self.towers.encode_users(item_vectors, histories, batch.lengths, features)

    def _full_softmax(self, batch: Batch) -> Tensor:
        everything = self._encode(torch.arange(self.problem.n_items, device=self.device))  # [N, D]
        users = self._encode_users(everything, batch.histories, batch) / self.log_temperature.exp()
        return full_softmax(users @ everything.T, batch.items, label_smoothing=self.settings.label_smoothing)

    def _sampled_softmax(self, batch: Batch) -> Tensor:
        frequencies = self._on_device["frequencies"]["all"]
        drawn = draw_candidates(self.settings.negatives, batch.items, frequencies)
        distinct, (histories, targets, candidates) = _distinct(batch.histories, batch.items, drawn.rows)
        vectors = self._encode(distinct)
        users = self._encode_users(vectors, histories, batch) / self.log_temperature.exp()
        return sampled_softmax(
            positive=(users * vectors[targets]).sum(1),
            candidates=users @ vectors[candidates].T,
            log_q=drawn.log_q,
            hits=batch.items.unsqueeze(1) == drawn.rows.unsqueeze(0),
            label_smoothing=self.settings.label_smoothing,
        )

    def _bce(self, batch: Batch) -> Tensor:
        """Each labelled pair, and `negatives.uniform` drawn ones beside each positive."""
        drawn = draw_uniform(self.settings.negatives.uniform, self.problem.n_items, batch.items)
        pairs = torch.cat([batch.items.unsqueeze(1), drawn], dim=1)  # [B, 1 + n]
        distinct, (histories, items) = _distinct(batch.histories, pairs)
        vectors = self._encode(distinct)
        users = self._encode_users(vectors, histories, batch) / self.log_temperature.exp()
        scores = (vectors[items] @ users.unsqueeze(-1)).squeeze(-1)  # [B, 1 + n]
        labels = torch.zeros_like(scores)
        labels[:, 0] = batch.labels
        counted = (batch.labels > 0).unsqueeze(1).expand_as(scores).clone()
        counted[:, 0] = True  # a known negative speaks for itself and draws no others
        return bce_pairs(scores[counted], labels[counted])


def _distinct(*rows: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The distinct rows of all tensors, and each tensor with places among them for rows."""
    distinct, places = torch.unique(torch.cat([part.flatten() for part in rows]), return_inverse=True)
    parts = places.split([part.numel() for part in rows])
    return distinct, [part.view_as(whole) for part, whole in zip(parts, rows, strict=True)]
