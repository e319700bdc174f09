"""`convoy doctor`: checks this machine and this project."""

import json

from core.errors import UserError
from pipelines.commands.options import AsJson, Overrides, start


def doctor(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Check whether this machine and this project have everything they need, and say how to fix faults."""
    config = start(overrides)
    from pipelines.doctor import examine

    findings = examine(config)
    faults = [finding for finding in findings if finding.state == "fault"]
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1, ensure_ascii=False))
    else:
        for one in findings:
            print(f"{one.state:6} {one.name:12} {one.says}{f'  -> {one.remedy}' if one.remedy else ''}")
    if faults:
        raise UserError(f"doctor: {', '.join(one.name for one in faults)}: see above how to mend", exit_code=1)
