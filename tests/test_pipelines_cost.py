import json

import pytest
from typer.testing import CliRunner

from pipelines.commands.main import app


def convoy(*arguments):
    result = CliRunner().invoke(app, ["cost", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.slow
def test_the_cost_of_a_network_is_told_as_a_table_as_json_and_as_a_page(workspace):
    code, text = convoy("lenet5", "--size", 32, "--classes", 10, "--json")
    found = json.loads(text[text.index("{") :])
    assert code == 0
    assert (found["num_parameters"], found["multiply_adds"]) == (61_706, 416_520)
    assert sum(layer["multiply_adds"] for layer in found["layers"]) == 416_520
    assert found["machine"]["operations_per_second"] > found["machine"]["bytes_per_second"] > 1e8
    code, text = convoy("lenet5", "--size", 32)
    assert (code, "416,520 multiply-adds" in text) == (0, False)  # of 10 classes, and here are 1,000
    assert convoy("lenet5", "--size", 32, "--html", workspace / "cost.html")[0] == 0
    assert "<svg" in (workspace / "cost.html").read_text()


def test_what_cannot_be_written_is_told_before_anything_is_measured(workspace):
    for arguments, reason in (
        (("--json", "--html", "a.html"), "say one of them"),
        (("--html", workspace / "nowhere" / "a.html"), "there is no folder"),
    ):
        code, text = convoy(*arguments)
        assert (code != 0, reason in text) == (True, True), text
