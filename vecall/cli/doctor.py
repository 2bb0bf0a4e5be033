"""The command that says why recall may be low: doctor."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from vecall import console
from vecall.cli.output import JsonOption, wrap_command

if TYPE_CHECKING:
    from vecall.doctor.finding import Finding, Language

_TEXTS: "dict[Language, tuple[str, tuple[str, ...], dict[str, str]]]" = {
    "en": ("doctor", ("level", "finding"), {}),
    "zh": ("诊断", ("级别", "发现"), {"error": "错误", "warning": "警告", "info": "提示"}),
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
    rows = [
        [
            level_names.get(finding.level, finding.level),
            escape(
                f"{finding.check}: {finding.message.get(language)}{f' → {finding.setting}' * bool(finding.setting)}"
            ),
        ]
        for finding in findings
    ]
    console.print_table(f"{title}: {escape(subject)}", columns, rows, align_left=True)
