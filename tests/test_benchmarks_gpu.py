import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.__main__ import PAGE, RESULTS, with_gpu_missing
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import cifar, synthetic
from benchmarks.gpu.device import roof_of
from benchmarks.gpu.fed import covered
from benchmarks.gpu.record import BEST, CIFAR, COPY, EXPECTED, FED, RESUMED, SMOKE, OutOfTimeError, Record
from benchmarks.gpu.sheets import COLUMNS, ROWS, SIDE, read_sheets
from core.errors import UserError

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def write_sheets(folder, splits=("train", "test")):
    """One sheet for each split, whose cells have the colour (number % 256, number // 256, 7)."""
    numbers = np.arange(COLUMNS * ROWS)
    cells = np.stack([numbers % 256, numbers // 256, np.full_like(numbers, 7)], axis=-1).astype(np.uint8)
    pixels = cells.reshape(ROWS, COLUMNS, 3).repeat(SIDE, axis=0).repeat(SIDE, axis=1)
    lines = ["split,sheet,cell,label,class,original_name"]
    for split in splits:
        Image.fromarray(pixels).save(folder / f"{split}_00.webp", lossless=True)
        lines += [f"{split},0,{cell},{cell % 10},c,n" for cell in reversed(range(1000))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def record(tmp_path):
    return Record(CPU, SMOKE, tmp_path / "gpu.json")


def test_the_roof_is_that_of_the_device():
    assert roof_of("NVIDIA H200") == 989
    assert roof_of("NVIDIA H100 80GB HBM3") == 989
    assert roof_of("NVIDIA H100 PCIe") == 756
    assert roof_of("NVIDIA A100-SXM4-80GB") == 312
    assert roof_of("NVIDIA L4") == 121
    assert roof_of("NVIDIA L40S") == 362
    assert roof_of("Tesla K80") is None
    assert roof_of("cpu") is None


def test_the_folded_convolution_has_the_same_sums():
    stem = torch.nn.Conv2d(3, 8, 11, 4, 2)
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(synthetic.FoldedStem(stem)(images), stem(images), atol=1e-5, rtol=1e-4)


def test_spans_that_overlap_count_once():
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4


def test_cells_are_read_row_by_row_and_in_the_order_of_the_labels(tmp_path):
    images, labels = read_sheets(write_sheets(tmp_path), "test", limit=3)
    assert images.shape == (3, 32, 32, 3)
    assert images[:, 5, 9].tolist() == [[number % 256, number // 256, 7] for number in (999, 998, 997)]
    assert labels.tolist() == [9, 8, 7]


def test_sheets_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(UserError, match="FileNotFoundError"):
        read_sheets(tmp_path, "train")
    write_sheets(tmp_path)
    (tmp_path / "train_00.webp").write_bytes(b"junk")
    with pytest.raises(UserError, match="train_00"):
        read_sheets(tmp_path, "train")
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="KeyError"):
        read_sheets(tmp_path, "train")


def test_a_run_goes_on_with_what_is_missing(record):
    record.add(COPY, 5.0, "GB/s")
    again = Record(CPU, SMOKE, record.path)
    again.resume()
    assert not again.needs(COPY)
    assert again.needs(FED)
    again.deadline = monotonic() - 1
    with pytest.raises(OutOfTimeError):
        again.needs(FED)
    other = Record(CPU, replace(SMOKE, name="other"), record.path)
    other.resume()
    assert other.needs(COPY)
    rows = json.loads(record.path.read_text())["rows"]
    assert {row["metric"] for row in rows} == {row.metric for row in EXPECTED}
    assert [row["value"] for row in rows if row["metric"] != COPY] == [None] * (len(EXPECTED) - 1)


def test_a_file_of_another_kind_is_left_alone(record):
    record.path.write_text("[]")
    with pytest.raises(UserError, match="no figures of this benchmark"):
        record.resume()
    assert record.path.read_text() == "[]"


def test_a_batch_that_does_not_fit_is_halved_and_noted(record, monkeypatch):
    def seconds(_record, _preset, _variant, batch_size):
        if batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.5

    monkeypatch.setattr(synthetic, "seconds_of_step", seconds)
    assert synthetic.rate_of(record, "bn", synthetic.PLAIN, 8) == 4
    row = record.rows[synthetic.metric_of("bn", synthetic.PLAIN, 8)]
    assert record.rows[BEST].value == 4
    assert row.reference.endswith("too little memory, measured with 2")
    assert synthetic.rate_of(record, "bn", synthetic.PLAIN, 512) is None


def test_an_item_that_fails_leaves_the_others(record, monkeypatch):
    def broken(_record):
        raise ValueError("x")

    def slow(_record):
        raise OutOfTimeError

    kinds = {"ceilings": broken, "synthetic": slow, "fed": lambda record: record.add(FED, 1.0, "images/s")}
    monkeypatch.setattr(gpu, "ITEMS", dict.fromkeys(kinds, 0.1))
    for name, kind in kinds.items():
        monkeypatch.setattr(import_module(f"benchmarks.gpu.{name}"), "measure", kind)
    assert gpu.measure(record, minutes=1)
    assert "ValueError: x" in record.notes["ceilings"]
    assert "goes on" in record.notes["synthetic"]
    assert record.rows[FED].value == 1


def test_without_a_cuda_device_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no CUDA device" in error
    assert "--size smoke" in error


def test_a_folder_that_is_none_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu", "--size", "smoke", "--cifar10", str(tmp_path / "none")])
    assert gpu.main() == 2
    assert "which is no folder" in capsys.readouterr().err


def test_without_the_sheets_the_item_is_skipped(record):
    cifar.measure(record)
    assert record.notes[CIFAR].startswith("skipped")


def test_the_rate_rises_and_falls_in_lines():
    factors = [cifar.rate_factor(step, 10, 0.2) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, pytest.approx(8 / 9)]
    assert factors[-1] == pytest.approx(1 / 9)


def test_the_page_says_what_is_not_measured():
    page = PAGE.read_text(encoding="utf-8")
    if not (RESULTS / "gpu.json").exists():
        assert with_gpu_missing(page) == page


@pytest.mark.slow
def test_networks_learn_from_the_sheets(record, tmp_path):
    cifar.measure(replace(record, cifar10=write_sheets(tmp_path)))
    assert CIFAR in record.rows


@pytest.mark.slow
@pytest.mark.parametrize("item", ["ceilings", "synthetic", "fed", "serving", "resume"])
def test_each_item_runs_on_a_cpu(record, item):
    import_module(f"benchmarks.gpu.{item}").measure(record)
    assert record.rows
    assert all(row.value > 0 for row in record.rows.values())
    if item == "synthetic":
        assert record.profile.keys() == {"kernels", "layers"}
    if item == "resume":
        assert record.rows[RESUMED].met


ALONE = """
import sys
from importlib.machinery import PathFinder

OTHERS = set("{others}".split())

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in OTHERS else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from benchmarks.gpu.__main__ import ITEMS
for item in ITEMS:
    __import__(f"benchmarks.gpu.{{item}}")
assert not OTHERS & sys.modules.keys()
"""
OTHERS = (
    # Not matplotlib and scipy, which torchmetrics imports where they are installed.
    "bentoml dask distributed dvc fastapi httptools mlflow multipart onnx onnxruntime onnxscript prefect "
    "prefect_dask prometheus_client psutil pyarrow pydantic_settings sklearn starlette typer uvicorn uvloop"
)


@pytest.mark.slow
def test_it_loads_without_the_rest_of_the_environment():
    program = ALONE.format(others=OTHERS)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
