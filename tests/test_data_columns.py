"""Columns that are made without Arrow's own way from Python's values."""

import pyarrow as pa
import pytest

from data.ingest.columns import BinaryColumn, texts


@pytest.mark.parametrize("values", [[], ["one"], ["", None, "größer", None], [None]])
def test_texts_are_those_of_arrow(values):
    column = texts(values)
    column.validate(full=True)
    assert column == pa.array(values, pa.string())


def test_a_column_takes_more_than_it_was_made_for():
    values = [b"one", b"", b"three", bytes(100), b"x"]
    column = BinaryColumn(4)
    for value in values:
        column.add(len(column.filled(value)))
    column.filled(b"not added")
    assert column.finish().to_pylist() == values
