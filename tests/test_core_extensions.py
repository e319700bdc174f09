"""What users add by name: a file of their project, or an entry point of a package."""

import sys

import pytest
from images import write

from core import code
from core.errors import UserError
from core.extensions import ExtensionPoint, is_of_project

POINT = ExtensionPoint("model.network", "convoy.networks", {"path": "pathlib:Path"})


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def package(folder, monkeypatch, text, name="their_net"):
    """An installed package with an entry point of this name, `build` of its module."""
    info = f"{name}-1.2.dist-info"
    write(
        folder,
        {
            f"{name}.py": text.encode(),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n".encode(),
            f"{info}/entry_points.txt": f"[convoy.networks]\n{name} = {name}:build\n".encode(),
        },
    )
    monkeypatch.syspath_prepend(folder)


def failure(name="my_net:build", *arguments):
    with pytest.raises(UserError) as caught:
        POINT.load_function(name, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my_net:build", True),
        ("nets.deep:Net", True),
        ("my_net", False),
        ("my_net:", False),
        (":build", False),
        ("my-net:build", False),
        ("my_net:Net.build", False),
        ("C:/net.py", False),
    ],
)
def test_what_is_a_name_in_the_project(name, expected):
    assert is_of_project(name) is expected
    assert POINT.has(name) is expected


def test_what_has_no_meaning_is_told_with_what_has():
    with pytest.raises(ValueError, match=r"^nothing has this name; there are path; yours is my_file:name$"):
        POINT.accept("my-net")
    assert POINT.accept("path") == "path"


def test_files_of_a_project_hide_nothing_and_import_one_another(project):
    write(
        project,
        {
            "data.py": b"from .models import SIZE\nfrom core.errors import UserError\nBOTH = SIZE, UserError",
            "models.py": b"from .nets.sizes import SIZE",
            "nets/sizes.py": b"SIZE = 7",
        },
    )
    before = set(project.rglob("*"))
    assert POINT.load("data:BOTH") == (7, UserError)
    assert POINT.load("nets.sizes:SIZE") == 7
    assert sys.modules["core.errors"].UserError is UserError
    assert set(project.rglob("*")) == before, "no bytecode either"


def test_a_file_that_was_edited_is_read_again(project):
    for number in (1, 2):
        write(project, {"my_net.py": b"from .sizes import SIZE", "sizes.py": f"SIZE = {number}".encode()})
        assert POINT.load("my_net:SIZE") == number


def test_two_projects_have_files_of_one_name(project, monkeypatch):
    found = []
    for number in (1, 2):
        write(project, {f"{number}/my_net.py": f"SIZE = {number}".encode()})
        monkeypatch.chdir(project / str(number))
        found.append(POINT.load("my_net:SIZE"))
    assert found == [1, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "model.network is my_net:build, and {project} has no my_net.py: put the file there"),
        ("def make(): ...\n_x = 1", "model.network is my_net:build, and my_net.py defines no build; it defines make"),
        ("\ndef build(:", "my_net.py:2: SyntaxError: invalid syntax"),
        ("def build(): ...\n\n1 / 0", "my_net.py:3: ZeroDivisionError: division by zero (model.network is my_net:bu"),
        ("import no_such_package as build", "my_net.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("import my_net as build", "a file of the project imports another one with a dot, `from .my_net import ...`"),
        ("build = 3", "model.network is my_net:build, which is no function but 3: expected build(size)"),
        ("def build(): ...", "which cannot be called as build(size): too many positional arguments"),
        ("def build(a, b): ...", "which cannot be called as build(size): missing a required argument: 'b'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(project, text, words):
    if text is not None:
        (project / "my_net.py").write_text(text)
    assert words.format(project=project) in failure("my_net:build", "size")


def test_what_is_missing_is_found_without_loading_it(project):
    write(project, {"my_net.py": b"1 / 0\nif True:\n    def build(): ..."})
    POINT.check("my_net:build", project)
    with pytest.raises(UserError, match=r"defines no other; it defines build$"):
        POINT.check("my_net:other", project)
    POINT.check("path", project)


def test_an_error_names_the_innermost_line_of_the_users(project):
    write(project, {"my_net.py": b"import json\n\ndef build():\n    return json.loads('{')\n"})
    line = r"^my_net\.py:4: JSONDecodeError: Expecting .* \(model\.network is my_net:build\)$"
    with pytest.raises(UserError, match=line), POINT.explained("my_net:build"):
        POINT.load("my_net:build")()


def test_an_answer_of_another_kind_is_named():
    POINT.require("my_net:build", 3, int, str)
    with pytest.raises(UserError, match=r"^model\.network is my_net:build, which gave an int: expected str or pathlib"):
        POINT.require("my_net:build", 3, str, type(sys.modules["pathlib"].Path("x")))


def test_entry_points_of_installed_packages(project, monkeypatch):
    package(project, monkeypatch, "def build(size):\n    return 10 // size\n")
    assert POINT.accept("their_net") == "their_net"
    assert POINT.load_function("their_net", "size")(5) == 2
    line = r"^their_net\.py:2: ZeroDivisionError: .* \(model\.network is their_net\)$"
    with pytest.raises(UserError, match=line), POINT.explained("their_net"):
        POINT.load("their_net")(0)
    assert (POINT.modules("their_net"), POINT.packages("their_net")) == ([], ["their_net==1.2"])
    assert "which no installed package has as an entry point of convoy.networks" in failure("other")


def test_a_digest_follows_the_files_of_the_project(project):
    def digest():
        return code.digest(*POINT.modules("my_net:build"))

    write(project, {"my_net.py": b"from .sizes import SIZE\nfrom core.files import DISK_FULL", "sizes.py": b"SIZE = 1"})
    before = digest()
    assert "core.files" in code.closure("convoy_project.my_net")
    write(project, {"sizes.py": b"# Seven.\nSIZE = 1", "other.py": b"SIZE = 1"})
    assert digest() == before
    write(project, {"sizes.py": b"SIZE = 2"})
    assert digest() != before
    assert code.digest("core.files", packages=["their_net==1.2"]) != code.digest("core.files")
    (project / "my_net.py").unlink()
    with pytest.raises(UserError, match=r"has no my_net\.py, which a parameter names: put the file there$"):
        digest()
