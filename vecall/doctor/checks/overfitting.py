"""The validation score falls while the loss falls: the model learns the training part by heart."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message

_MIN_EPOCHS = 3
_MIN_FALL = 0.03  # of the score since the best epoch, relative

_MESSAGE = Message(
    "the validation score was best in epoch {best} of {epochs} and has since fallen by {fall:.1%}, while the loss "
    "fell from {before:.3f} to {after:.3f}. {meaning}",
    "验证得分在第 {best} 轮（共 {epochs} 轮）最好，之后下降了 {fall:.1%}，而损失从 {before:.3f} 降到 {after:.3f}。"
    "{meaning_zh}",
)
_FIRST = (
    "The first epoch was the best: one pass already overfits. Lower training.lr, raise model.dropout or "
    "training.weight_decay, or lower model.dim.",
    "第一轮就是最好的：一遍就已过拟合。请降低 training.lr、提高 model.dropout 或 training.weight_decay，或减小 "
    "model.dim。",
)
_LATER = (
    "The weights of the best epoch are used, so this costs time only; with more model.dropout a later epoch may be "
    "better.",
    "使用的是最好一轮的权重，因此只是费时；提高 model.dropout 后，更晚的轮次可能更好。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare the best epoch with the last one."""
    training = context.training
    if training is None or len(training.epochs) < _MIN_EPOCHS:
        return []
    best, last = training.epochs[training.best_epoch], training.epochs[-1]
    fall = 1 - last["valid_score"] / best["valid_score"] if best["valid_score"] else 0.0
    if fall < _MIN_FALL or last["loss"] >= best["loss"]:
        return []
    is_first = training.best_epoch == 0
    meaning, meaning_zh = _FIRST if is_first else _LATER
    message = _MESSAGE.format(
        best=training.best_epoch + 1,
        epochs=len(training.epochs),
        fall=fall,
        before=best["loss"],
        after=last["loss"],
        meaning=meaning,
        meaning_zh=meaning_zh,
    )
    setting = "training.lr" if is_first else "model.dropout"
    return [Finding("overfitting", "warning" if is_first else "info", message, round(fall, 4), setting)]
