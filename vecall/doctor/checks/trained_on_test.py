"""The weights were trained on interactions that are held out, through the run that `--init` started from."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message

_MIN_SHARE = 0.001  # late rows may move the split's cut slightly
_SERIOUS_SHARE = 0.01

_MESSAGE = Message(
    "the weights were trained on {share:.1%} of the interactions that are now held out: the run that --init started "
    "from had learned them, or the tables have changed since. Metrics are too high. Fit without --init, or use split "
    '= "global_time" with cuts at or after those of the first run.',
    "权重曾用 {share:.1%} 的留出交互训练过：--init 的起始运行已经学过它们，或者表在之后变了。指标因此偏高。请不带 "
    '--init 重新训练，或用 split = "global_time" 并把切分时间设在第一次运行之时或之后。',
)


def check(context: DoctorContext) -> list[Finding]:
    """Read how much of the held-out part was trained on."""
    share = 0.0 if context.training is None else context.training.held_out_share_trained
    if share < _MIN_SHARE:
        return []
    level: Level = "error" if share >= _SERIOUS_SHARE else "warning"
    return [Finding("trained_on_test", level, _MESSAGE.format(share=share), round(share, 4), "data.split")]
