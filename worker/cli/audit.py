"""`almoner audit`: what the platforms hold against what the grants say, both ways."""

from typing import Annotated, Any

import msgspec
import typer

from worker.cli.output import (
    NOT_FOUND,
    Failure,
    console,
    console_err,
    print_json,
    print_table,
    run,
    service,
    settings_or_fail,
)


def audit(
    benefit: Annotated[str | None, typer.Option(help="Only this benefit.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Show the plan, then mend what is ours.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before mending.")] = False,
    last: Annotated[bool, typer.Option("--last", help="Show the last report instead of looking now.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Compare what the platforms hold with what the grants say; exit code 1 where something is not right."""
    settings = settings_or_fail()

    async def compare() -> Any:  # noqa: ANN401 - Report
        from worker.audit import Audit, Report
        from worker.store import audits

        async with service(settings) as opened:
            if benefit and benefit not in opened.pipeline.catalogue.benefits:
                known = ", ".join(opened.pipeline.catalogue.benefits)
                raise Failure(f"There is no benefit {benefit!r}; there are: {known}", code=NOT_FOUND)
            if last:
                kept = await opened.database.read(audits.last)
                if kept is None:
                    raise Failure("There was no audit yet; `almoner audit` makes one", code=NOT_FOUND)
                return msgspec.json.decode(kept, type=Report)
            auditor = Audit(opened.pipeline)
            with console_err.status("Comparing") as status:
                report = await auditor.look(benefit, lambda name: status.update(f"Comparing {name}"))
            if not as_json:
                _show(report)
            plan = report.of("missing", "left")
            if fix and plan and (yes or typer.confirm(_plan(report))):
                await auditor.mend(report, "missing", "left")
                await opened.pipeline.drain()
            if benefit is None:
                await auditor.keep(report)
            return report

    report = run(compare())
    if as_json:
        print_json(msgspec.to_builtins(report))
    elif last:
        _show(report)
    if report.mended:
        console_err.print(
            f"{report.mended} settled again; see what came of it: [bold]almoner grants list[/]", highlight=False
        )
    elif wrong := report.of("missing", "left", "unknown"):
        hint = "" if fix or not report.of("missing", "left") else "; mend it with: almoner audit --fix"
        raise Failure(f"{len(wrong)} not as it should be{hint}")


def _plan(report: Any) -> str:  # noqa: ANN401 - Report
    missing, left = len(report.of("missing")), len(report.of("left"))
    return f"Give again what {missing} should have, and take back what {left} should not?"


def _show(report: Any) -> None:  # noqa: ANN401 - Report
    from worker.audit import KINDS

    rows = [
        {"finding": KINDS[one.kind], "benefit": one.benefit, "resource": one.resource, "customer_id": one.customer_id,
         "id": one.grant_id, "detail": one.detail}
        for kind in KINDS
        for one in report.of(kind)
    ]  # fmt: skip
    if rows:
        columns = ("finding", "benefit", "resource", "customer_id", "id", "detail")
        print_table("Audit", columns, rows, {}, narrow=("finding", "benefit", "resource", "detail"))
    counts = ", ".join(f"{len(report.of(kind))} {kind}" for kind in KINDS)
    console.print(f"{report.checked} grants compared: {counts}.")
