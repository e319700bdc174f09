"""Code as keys see it, in small houses of a few modules."""

import shutil

import pytest
from images import write

from core import code

DECODE = '''"""Decode."""

from data.budget import LIMIT

NUM = 3
"""A constant."""


def decode(image):
    """Decode an image."""
    return image[:NUM] * LIMIT
'''

FILES = {
    "data/__init__.py": "",
    "data/budget.py": "LIMIT = 1\n",
    "data/decode.py": DECODE,
    "data/other.py": "raise SystemExit('imported')\n",
    "models/__init__.py": "",
    "models/train.py": "import data.decode\n\nRATE = 0.1\n",
}


@pytest.fixture
def house(tmp_path, monkeypatch):
    folder = write(tmp_path / "house", {name: text.encode() for name, text in FILES.items()})
    monkeypatch.setattr(code, "ROOT", folder)
    return folder


def digest_after(house, name, text, *modules, **options):
    write(house, {name: text.encode()})
    return code.digest(*(modules or ["models.train"]), **options)


@pytest.mark.parametrize(
    "text",
    [
        f"# A comment.\n{DECODE}",
        DECODE.replace('"""Decode."""\n', ""),
        DECODE.replace("Decode an image", "Say it otherwise"),
        DECODE.replace("A constant", "Three"),
        DECODE.replace("\n\n", "\n\n\n"),
        DECODE.replace("image[:NUM] * LIMIT", "(\n        image[: NUM]\n        * LIMIT  # why\n    )"),
    ],
    ids=["comment", "module", "function", "constant", "blank line", "formatting"],
)
def test_words_do_not_count(house, text):
    assert text != DECODE
    before = code.digest("models.train")
    assert digest_after(house, "data/decode.py", text) == before


@pytest.mark.parametrize(
    "text",
    [
        DECODE.replace("NUM = 3", "NUM = 4"),
        DECODE.replace("NUM = 3", "NUM = 3.0"),
        DECODE.replace("NUM = 3", "NUM = '3'"),
        DECODE.replace("NUM = 3", "NUM = None"),
        DECODE.replace("[:NUM]", "[NUM:]"),
        DECODE.replace(" * LIMIT", ""),
        f"{DECODE}    return 'a string that is returned'\n",
    ],
)
def test_meaning_counts(house, text):
    before = code.digest("models.train")
    assert digest_after(house, "data/decode.py", text) != before


def test_a_digest_does_not_depend_on_the_place_or_the_order(house, monkeypatch):
    before = code.digest("models.train", "data.budget")
    monkeypatch.setattr(code, "ROOT", shutil.copytree(house, house.parent / "elsewhere"))
    assert code.digest("data.budget", "models.train") == before


def test_what_is_not_imported_does_not_count(house):
    before = code.digest("models.train")
    assert digest_after(house, "data/other.py", "X = 1\n") == before


@pytest.mark.parametrize(
    "text",
    [
        "from data.other import X",
        "from data import other",
        "import data.other",
        "from . import other",
        "from .other import X",
        "def f():\n    from data.other import X",
        "try:\n    import data.other\nexcept ImportError:\n    pass",
        "try:\n    f()\nexcept ValueError:\n    import data.other",
        "match 1:\n    case 1:\n        import data.other",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import data.other",
    ],
)
def test_what_is_imported_counts_wherever_it_is_imported(house, text):
    write(house, {"data/budget.py": f"LIMIT = 1\n{text}\n".encode()})
    before = code.digest("models.train")
    assert "data.other" in code.closure("models.train")
    assert digest_after(house, "data/other.py", "X = 1\n") != before


def test_what_is_imported_for_type_checkers_does_not_count(house):
    text = "if TYPE_CHECKING:\n    import data.other\nif typing.TYPE_CHECKING:\n    from data.other import X\n"
    write(house, {"data/budget.py": text.encode()})
    assert [*code.closure("models.train")] == ["data", "data.budget", "data.decode", "models", "models.train"]


def test_packages_and_circles(house):
    write(
        house,
        {
            "data/images/__init__.py": b"import data.images.icons",
            "data/images/icons.py": b"import data.budget",
            "data/budget.py": b"from data.images import icons, icons as also, missing\nimport numpy",
        },
    )
    found = code.closure("data.budget")
    assert [*found] == ["data", "data.budget", "data.images", "data.images.icons"]
    assert found["data.images"] == house / "data/images/__init__.py"


def test_a_marked_module_does_not_count_but_what_it_imports_does(house):
    before = code.digest("models.train")
    marked = DECODE.replace("NUM = 3", "IN_NO_KEY = 'a reason'\nNUM = 3")
    after = digest_after(house, "data/decode.py", marked)
    assert after != before
    assert digest_after(house, "data/decode.py", marked.replace("NUM = 3", "NUM = 4")) == after
    assert digest_after(house, "data/budget.py", "LIMIT = 2\n") != after


def test_what_counts_elsewhere_is_left_out(house):
    before = code.digest("models.train", without=["data.decode"])
    assert digest_after(house, "data/decode.py", "NUM = 4\n", without=["data.decode"]) == before
    assert digest_after(house, "models/train.py", "import data.decode\n", without=["data.decode"]) != before


def test_a_module_that_is_not_there_is_named(house):
    with pytest.raises(ModuleNotFoundError, match=r"there is no module models\.missing in "):
        code.digest("models.missing")


def test_files_beside_a_module_belong_to_it(house):
    write(house, {"data/budget/page.html": b"", "data/budget/icons/a.svg": b"", "data/other/b.svg": b""})
    assert code.package_data("models.train") == [house / "data/budget/icons/a.svg", house / "data/budget/page.html"]
