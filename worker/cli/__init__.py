"""The console command `almoner`: one file for each family of commands, all registered here.

Exit codes: 0 done, 1 something is wrong and was said, 2 the command was called wrongly, 3 nothing was found.
"""

import typer

from worker.cli import audit, benefits, deliveries, demo, grants, licenses, run, signing_keys, simulate
from worker.cli.output import Failure, console_err

app = typer.Typer(
    name="almoner",
    help="Fulfils what customers bought at Polar, and answers what they may use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("up")(run.up)
app.command("receive")(run.receive)
app.command("work")(run.work)
app.command("demo")(demo.demo)
app.command("check")(benefits.check)
app.command("accept-benefits")(benefits.accept_benefits)
app.command("migrate")(run.migrate_database)
app.command("simulate")(simulate.simulate)
app.add_typer(deliveries.app, name="deliveries")
app.command("replay")(deliveries.replay_deliveries)
app.add_typer(grants.app, name="grants")
app.add_typer(signing_keys.app, name="signing-keys")
app.add_typer(licenses.app, name="licenses")
app.command("audit")(audit.audit)


def main() -> None:
    """Run the command, and say what went wrong in words."""
    try:
        app()
    except Failure as failure:
        for sentence in failure.sentences:
            console_err.print(f"[bold red]almoner:[/] {sentence}", highlight=False, soft_wrap=True)
        raise SystemExit(failure.code) from None
