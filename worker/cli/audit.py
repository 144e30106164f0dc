"""`almoner audit`: what the platforms hold against what the grants say, both ways."""

from collections.abc import Callable
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

_FIXES = {"missing": "give again", "left": "take back", "foreign": "nothing: yours to decide", "unknown": ""}
"""What `--fix` does."""


def audit(
    benefit: Annotated[str | None, typer.Option(help="Only this benefit.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Show the plan, then mend what is ours.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before mending.")] = False,
    last: Annotated[bool, typer.Option("--last", help="Show the last report instead of looking now.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Compare what the platforms hold with what the grants say.

    Exit code 1 where access is missing, was left behind, or could not be looked at; strangers are only told.
    """
    settings = settings_or_fail()

    async def compare() -> Any:  # noqa: ANN401 - Report
        async with service(settings) as opened:
            if benefit and benefit not in opened.pipeline.catalogue.benefits:
                known = ", ".join(opened.pipeline.catalogue.benefits)
                raise Failure(f"There is no benefit {benefit!r}; there are: {known}", code=NOT_FOUND)
            if last:
                return await _last(opened)
            return await _compare(opened, benefit, _mending(fix=fix, yes=yes), quiet=as_json)

    report = run(compare())
    if as_json:
        print_json(msgspec.to_builtins(report))
    elif last:
        _show(report)
    _conclude(report, fix=fix)


def _conclude(report: Any, *, fix: bool) -> None:  # noqa: ANN401 - Report
    if report.mended:
        console_err.print(f"{report.mended} settled again; see what came of it: [bold]almoner grants list[/]")
    elif wrong := report.of("missing", "left", "unknown"):
        hint = "" if fix or not report.of("missing", "left") else "; mend it with: almoner audit --fix"
        raise Failure(f"{len(wrong)} not as it should be{hint}")


async def _last(opened: Any) -> Any:  # noqa: ANN401 - Service, Report
    from worker.audit import Report
    from worker.store import audits

    kept = await opened.database.read(audits.last)
    if kept is None:
        raise Failure("There was no audit yet; `almoner audit` makes one", code=NOT_FOUND)
    return msgspec.json.decode(kept, type=Report)


async def _compare(opened: Any, benefit: str | None, is_mended: Callable[[Any], bool], *, quiet: bool) -> Any:  # noqa: ANN401 - as above
    from worker.audit import Audit

    auditor = Audit(opened.pipeline)
    with console_err.status("Comparing") as status:
        report = await auditor.look(benefit, lambda name: status.update(f"Comparing {name}"))
    if not quiet:
        _show(report)
    if is_mended(report):
        await auditor.mend(report, "missing", "left")
        await opened.pipeline.drain()
    if benefit is None:
        await auditor.keep(report)
    return report


def _mending(*, fix: bool, yes: bool) -> Callable[[Any], bool]:
    """Return whether a report's findings are to be mended: with `--fix`, once a person has seen what it would do."""

    def is_mended(report: Any) -> bool:  # noqa: ANN401 - Report
        return fix and bool(report.of("missing", "left")) and (yes or typer.confirm(_plan(report)))

    return is_mended


def _plan(report: Any) -> str:  # noqa: ANN401 - Report
    missing, left = len(report.of("missing")), len(report.of("left"))
    return f"Give again what {missing} should have, and take back what {left} should not?"


def _show(report: Any) -> None:  # noqa: ANN401 - Report
    from worker.audit import KINDS

    rows = [
        {"finding": KINDS[one.kind], "benefit": one.benefit, "resource": one.resource, "customer_id": one.customer_id,
         "id": one.grant_id, "fix": _FIXES[one.kind], "detail": one.detail}
        for kind in KINDS
        for one in report.of(kind)
    ]  # fmt: skip
    if rows:
        columns = ("finding", "benefit", "resource", "customer_id", "id", "fix", "detail")
        print_table("Audit", columns, rows, {}, narrow=("finding", "resource", "customer_id", "fix", "detail"))
    counts = ", ".join(f"{len(report.of(kind))} {kind}" for kind in KINDS)
    console.print(f"{report.checked} grants compared: {counts}.")
