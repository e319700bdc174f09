"""What names a training."""

import pytest
from conftest import tiny_job
from houses import change, reword
from images import write


def key(prepared, **options):
    return tiny_job(prepared, **options).key


def test_words_in_the_code_change_no_training(prepared, house):
    before = key(prepared), key(prepared, recipe="probe")
    for path in house.rglob("*.py"):
        reword(path)
    assert (key(prepared), key(prepared, recipe="probe")) == before


def test_a_new_network_changes_no_training(prepared, house):
    before = key(prepared)
    config = house / "models/config.py"
    registered = config.read_text().replace('"lenet5":', '"new": "models.new", "lenet5":')
    assert '"new"' in registered
    config.write_text(registered)
    write(house, {"models/new.py": b"FAMILY = None"})
    assert key(prepared) == before


@pytest.mark.parametrize(
    ("module", "constant", "concerned"),
    [
        ("models/networks/lenet.py", "SMALLEST", ["lenet5"]),
        ("models/networks/alexnet.py", "GRID", ["alexnet"]),
        ("models/networks/efficientnet_lite.py", "_STAGES", []),
        ("models/training/classifier.py", "DROPOUT", ["alexnet", "lenet5"]),
        ("data/augmentation/draws.py", "MORE", ["alexnet", "lenet5"]),
    ],
)
def test_a_training_depends_on_its_own_network_and_on_what_trains_it(prepared, house, module, constant, concerned):
    names = ("alexnet", "lenet5")
    before = {name: key(prepared, network=name) for name in names}
    with (house / module).open("a") as file:
        file.write(f"\n\n{constant} = 7\n")
    assert [name for name in names if key(prepared, network=name) != before[name]] == concerned


def test_only_what_starts_from_a_probe_depends_on_how_that_is_made(prepared, house):
    recipes = ("modern", "probe", "finetune")
    before = {recipe: key(prepared, recipe=recipe) for recipe in recipes}
    change(house / "models/training/probe.py", "MAX_ITERATIONS", "501")
    assert [recipe for recipe in recipes if key(prepared, recipe=recipe) != before[recipe]] == ["probe", "finetune"]


@pytest.mark.parametrize(
    "module",
    [
        *(
            "data/images/decode.py",
            "data/preparing/stage.py",
            "data/config.py",
            "core/errors.py",
            "data/sources/parquet.py",
        ),
        *(
            "models/config.py",
            "models/training/job.py",
            "models/training/progress.py",
            "models/training/interruption.py",
            "models/tracking/runs.py",
        ),
        *(
            "models/steps.py",
            "models/judging/evaluate.py",
            "models/exported/export.py",
            "models/exported/manifest.py",
            "models/exported/predictor.py",
        ),
    ],
)
def test_what_makes_no_weights_changes_no_training(prepared, house, module):
    before = key(prepared), key(prepared, recipe="finetune")
    with (house / module).open("a") as file:
        file.write("\n\nMORE = 7\n")
    assert (key(prepared), key(prepared, recipe="finetune")) == before


def test_a_changed_module_of_training_is_told(prepared, house):
    job = tiny_job(prepared)
    last = job.data_version, job.params, job.code
    with (house / "models/training/classifier.py").open("a") as file:
        file.write("\n\nMORE = 7\n")
    assert tiny_job(prepared).changes_since(*last) == ["the code has changed"]
    assert tiny_job(prepared, network="alexnet").changes_since(*last) == ["model.network lenet5 -> alexnet"]
