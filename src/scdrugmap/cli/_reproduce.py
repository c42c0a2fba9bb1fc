"""``scdrugmap reproduce``: show the plan, ask, run, say what was left out."""

from __future__ import annotations

import sys

import typer

from scdrugmap.cli._console import console, print_json
from scdrugmap.cli._exit import PARTLY, USAGE
from scdrugmap.study.spec import ReproduceSpec


def run_reproduce(spec: ReproduceSpec, as_json: bool) -> None:
    """Show the plan and, once it is accepted, run it.

    Parameters
    ----------
    spec
        The run.
    as_json
        Print JSON instead of text.
    """
    from scdrugmap.study.plan import make_plan
    from scdrugmap.study.run import run_plan

    plan = make_plan(spec)
    if as_json and spec.plan:
        print_json(**plan.to_dict())
    else:
        typer.echo(str(plan), err=as_json)
    if spec.plan:
        return
    if not spec.yes:
        if not sys.stdin.isatty():
            typer.echo("Nothing was fetched. Accept the plan with --yes, or run it in a terminal.", err=True)
            raise typer.Exit(USAGE)
        accepts = " and accept the licences above" if plan.accept else ""
        if not typer.confirm(f"Go on{accepts}?", default=False):
            raise typer.Exit(USAGE)
    done = run_plan(plan)
    if as_json:
        print_json(
            store=str(spec.store), tables=sorted(done.tables), figures=sorted(done.figures), missing=done.missing
        )
    else:
        console.print(str(done), soft_wrap=True)
    if done.missing:
        raise typer.Exit(PARTLY)
