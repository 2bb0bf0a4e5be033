"""The command that says why recall may be low: doctor."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vecall import console
from vecall.cli.output import JsonOption, wrap_command

if TYPE_CHECKING:
    from vecall.doctor.finding import Finding, Language, Level

_TEXTS: "dict[Language, tuple[str, tuple[str, str], dict[Level, str]]]" = {
    "en": (
        "{subject}: errors {error}, warnings {warning}",
        ("level", "finding"),
        {"error": "error", "warning": "warning", "info": "info"},
    ),
    "zh": (
        "{subject}：错误 {error}，警告 {warning}",
        ("级别", "发现"),
        {"error": "错误", "warning": "警告", "info": "提示"},
    ),
}


@wrap_command
def doctor(
    run: Annotated[Path | None, typer.Option("--run", help="Directory of a finished run.")] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Store directory, whose current release is examined.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Settings file that names the tables (default: the run's); without it a store is examined alone.",
        ),
    ] = None,
    language: Annotated[Literal["en", "zh"], typer.Option("--lang", help="Language of the messages.")] = "en",
    *,
    as_json: JsonOption = False,
) -> None:
    """Say why recall may be low, in order of likelihood, with the setting to change."""
    from vecall.config import load_config
    from vecall.doctor.examination import examine

    settings = None if config is None else load_config(config)
    findings = examine(run=run, store=store, config=settings)
    if as_json:
        console.print_json({"findings": [finding.as_json(language) for finding in findings]})
    else:
        _print_findings(str(run or store), findings, language)


def _print_findings(subject: str, findings: "Sequence[Finding]", language: "Language") -> None:
    title, columns, level_names = _TEXTS[language]
    rows = []
    for finding in findings:
        change = f" → {finding.setting}" if finding.setting else ""
        text = f"{finding.check}: {finding.message.get(language)}{change}"
        rows.append([level_names[finding.level], text])
    counts = {level: sum(finding.level == level for finding in findings) for level in level_names}
    console.print_table(title.format(subject=subject, **counts), columns, rows, align_left=True)
