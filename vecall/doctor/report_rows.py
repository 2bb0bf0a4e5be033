"""Findings as rows of the evaluation report."""

from collections.abc import Sequence

from vecall.doctor.finding import Finding
from vecall.evaluation.report import FindingRow


def build_finding_rows(findings: Sequence[Finding]) -> list[FindingRow]:
    """Return the rows of the findings above "info", in their order."""
    return [
        FindingRow(finding.level, finding.check, finding.message.en, finding.setting)
        for finding in findings
        if finding.level != "info"
    ]
