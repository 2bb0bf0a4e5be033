"""What could not be examined, and what to give so that it can."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding


def check(context: DoctorContext) -> list[Finding]:
    """Report each of them."""
    return [Finding("unexamined", "info", message, None, "--config") for message in context.unexamined]
