"""Item vectors point the same way, or span few dimensions: items cannot be told apart."""

import numpy as np

from vecall.arrays import Vectors
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message

_MIN_ITEMS = 100  # fewer items are told apart within a cone, and by few dimensions
_COLLAPSED, _ANISOTROPIC = 0.9, 0.5  # mean cosine of two items
_MIN_DIM_SHARE = 0.04  # of D that the vectors span
_MIN_DIM = 3.0

_CONE = Message(
    "two random items have a mean cosine of {cosine:.2f}: the vectors lie in a narrow cone ({dims:.1f} of {dim} "
    "dimensions are used), so all items score alike. Lower training.temperature (it is {temperature}), train longer, "
    "or lower training.lr if the loss does not fall.",
    "随机两个物品的平均余弦为 {cosine:.2f}：向量挤在一个窄锥里（{dim} 维只用了 {dims:.1f} 维），所有物品得分相近。请降"
    "低 training.temperature（现为 {temperature}）、延长训练；若损失不下降，降低 training.lr。",
)
_FLAT = Message(
    "item vectors span {dims:.1f} of {dim} dimensions (mean cosine {cosine:.2f}): the model tells items apart by few "
    "properties. Train longer, or lower training.temperature (it is {temperature}); if the data are that simple, a "
    "smaller model.dim does as well.",
    "物品向量只占 {dim} 维中的 {dims:.1f} 维（平均余弦 {cosine:.2f}）：模型只用很少的性质区分物品。请延长训练，或降低 "
    "training.temperature（现为 {temperature}）；若数据确实如此简单，更小的 model.dim 就够。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Measure the mean cosine of items, and the dimensions that they span."""
    if context.item_vectors is None or len(context.item_vectors) < _MIN_ITEMS:
        return []
    cosine, dims, dim = _compute_mean_cosine(context.item_vectors), *_compute_effective_dim(context.item_vectors)
    temperature = "?" if context.config is None else context.config.training.temperature
    values = {"cosine": cosine, "dims": dims, "dim": dim, "temperature": temperature}
    if cosine >= _ANISOTROPIC:
        level: Level = "error" if cosine >= _COLLAPSED else "warning"
        return [Finding("collapsed_vectors", level, _CONE.format(**values), round(cosine, 4), "training.temperature")]
    if dims < max(_MIN_DIM_SHARE * dim, min(_MIN_DIM, dim / 2)):
        return [Finding("collapsed_vectors", "warning", _FLAT.format(**values), round(dims, 4), "training.temperature")]
    return []


def _compute_mean_cosine(vectors: Vectors) -> float:
    """Return the mean cosine of two different vectors of [n, D], n >= 2: from the length of the mean unit vector."""
    units = _normalize(vectors)
    n = len(units)
    return float((n * np.square(units.mean(axis=0)).sum() - 1) / (n - 1))


def _compute_effective_dim(vectors: Vectors) -> tuple[float, int]:
    """Return (Σλ)² / Σλ² of the eigenvalues of the covariance of unit vectors (participation ratio), and D."""
    eigenvalues = np.linalg.eigvalsh(np.cov(_normalize(vectors), rowvar=False)).clip(min=0)
    total = np.square(eigenvalues).sum()
    return (float(eigenvalues.sum() ** 2 / total) if total > 0 else 0.0), vectors.shape[1]


def _normalize(vectors: Vectors) -> Vectors:
    wide = vectors.astype(np.float64)
    units: Vectors = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return units
