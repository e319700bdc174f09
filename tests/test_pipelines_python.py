"""`import convoy`: the example of the documents, and what it does not show."""

import os
import subprocess
import sys

import numpy as np
import pytest
from imports import ROOT
from PIL import Image
from sklearn.datasets import load_digits

import convoy
from core.errors import UserError

EXAMPLE = (ROOT / "docs" / "python.md").read_text().split("```python\n")[1].split("```")[0]
REST = """
image = Image.open("digit.png").convert("RGB")
print(*classifier.predict(image), *classifier.predict([np.asarray(image), open("digit.png", "rb").read()]), classifier)
"""


def test_the_door_loads_nothing_heavy():
    code = (
        "import sys, convoy\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'dvc', 'bentoml', 'onnxruntime'} & sys.modules.keys()\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_example_of_the_documents(workspace):
    pixels = load_digits().images[0] * 255 / 16
    Image.fromarray(pixels.astype(np.uint8)).save(workspace / "digit.png")
    code = f"import numpy as np\nfrom PIL import Image\n{EXAMPLE}{REST}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    prepared, trained, accuracy, answer, rest = found.stdout.splitlines()
    assert prepared.endswith(": 1,797 images in 10 classes (train 1,250, val 179, test 368), 0 rejected)")
    assert trained.startswith("TrainedModel(classifier v1: champion, test accuracy 0.")
    assert 0.5 < float(accuracy) <= 1
    label, probability, uncertain = answer.split()
    assert (label in "0123456789", 0 < float(probability) <= 1, uncertain in ("True", "False")) == (True,) * 3
    assert rest.count(f"Prediction('{label}' {float(probability):.3f}") == 3, "whatever form the image has"
    assert "Classifier(classifier v1: alexnet, 10 classes, run " in rest


def test_the_environment_stays_as_it_was(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    before = dict(os.environ)
    with pytest.raises(UserError, match="has no classifier@champion"):
        convoy.Classifier.from_registry(project=workspace)
    assert dict(os.environ) == before
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", ["classifier", "@champion", "classifier/", ""])
def test_a_model_that_is_not_named(workspace, name):
    with pytest.raises(UserError, match="expected NAME@ALIAS or NAME/VERSION"):
        convoy.Classifier.from_registry(name)
