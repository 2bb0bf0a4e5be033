"""Command that prints the reference of vecall.toml."""

from typing import Annotated

import typer

from vecall import console
from vecall.cli.output import JsonOption, wrap_command


@wrap_command
def config(
    preset: Annotated[
        str | None, typer.Option("--preset", help="Show the values of this preset, such as sequence.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Print every key of vecall.toml with its default, type and meaning, as TOML; with --json the JSON schema."""
    from vecall.config import AUTO_PRESET, PRESETS
    from vecall.config_reference import build_json_schema, render_toml

    if preset == AUTO_PRESET:  # the default
        preset = None
    if preset is not None and preset not in PRESETS:
        expected = ", ".join((AUTO_PRESET, *PRESETS))
        raise typer.BadParameter(f"no preset {preset!r}; expected one of {expected}", param_hint="--preset")
    if as_json:
        console.print_json(build_json_schema(preset))
    else:
        console.out.print(render_toml(preset), end="", soft_wrap=True)
