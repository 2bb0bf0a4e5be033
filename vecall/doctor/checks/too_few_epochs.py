"""The validation score was still rising when the last epoch ended."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message

_MIN_GAIN = 0.03  # of the score in the last epoch, relative

_MESSAGE = Message(
    "the last of {epochs} epochs raised the validation score by {gain:.1%}, and the loss still fell from {before:.3f} "
    "to {after:.3f}: training ended too early. Set training.epochs = {advice}; early stopping ends it when it no "
    "longer helps.",
    "{epochs} 轮中的最后一轮仍把验证得分提高了 {gain:.1%}，损失从 {before:.3f} 降到 {after:.3f}：训练结束过早。请设 "
    "training.epochs = {advice}；不再有提升时会提前停止。",
)


def check(context: DoctorContext) -> list[Finding]:
    """See whether the last epoch that was allowed is the best by far."""
    config, training = context.config, context.training
    if config is None or training is None or len(training.epochs) < 2:
        return []
    before, last = training.epochs[-2:]
    is_last = training.best_epoch == len(training.epochs) - 1 and len(training.epochs) >= config.training.epochs
    gain = last["valid_score"] / before["valid_score"] - 1 if before["valid_score"] else 0.0
    if not is_last or gain < _MIN_GAIN:
        return []
    message = _MESSAGE.format(
        epochs=len(training.epochs),
        gain=gain,
        before=before["loss"],
        after=last["loss"],
        advice=2 * len(training.epochs),
    )
    return [Finding("too_few_epochs", "warning", message, round(gain, 4), "training.epochs")]
