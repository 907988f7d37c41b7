"""The reader of ``.csv`` and ``.parquet`` tables, one datum in each row."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_vae.data.files.array_checks import check
from pyro_vae.data.files.arrays import LABELS, InMemory, refuse_array
from pyro_vae.data.labels import encode_labels
from pyro_vae.data.source import Parts, Request
from pyro_vae.errors import first_line

if TYPE_CHECKING:
    import pandas as pd


def open_table(path: Path, request: Request) -> Parts:
    """Open a table of numbers.

    A column named ``label``, ``labels``, ``y``, ``target``, ``targets`` or ``classes`` holds the labels.

    Returns:
        Splits with all rows in the training split.

    Raises:
        ValueError: If the file is not a table, or a column other than the labels holds anything but numbers.
    """
    refuse_array(path, request)
    frame = _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
    if len(frame) == 0:
        raise ValueError(f"data set {path}: expected at least 3 rows below the header, got none; add rows of numbers.")
    named = [column for column in frame.columns if str(column).lower() in LABELS[""]]
    if len(named) > 1:
        raise ValueError(
            f"data set {path}: expected one column of labels, got {', '.join(map(str, named))}; keep only one."
        )
    labels, key = None, "without labels"
    if named:
        plain = isinstance(frame[named[0]].dtype, np.dtype) and frame[named[0]].dtype.kind == "f"
        if not plain and frame[named[0]].isna().any():  # encode_labels refuses missing numbers itself
            raise ValueError(
                f"data set {path}: some rows have no label; write -1 for an unknown label, or remove unlabelled rows."
            )
        (labels,), key = encode_labels([frame.pop(named[0]).to_numpy()], f"{path.name}, {named[0]}")
        if frame.shape[1] == 0:
            raise ValueError(f"data set {path}: expected columns of data beside {named[0]!r}, got none; add columns.")
    dropped = _drop_row_numbers(frame)
    for column in frame.columns:
        if frame[column].dtype.kind not in "biuf":
            raise ValueError(
                f"data set {path}: expected numbers, got {str(frame[column].iloc[0])!r} in column {column!r}; remove or encode "
                "this column, or name it 'label' if it holds the labels."
            )
    alike = len({str(dtype) for dtype in frame.dtypes}) == 1 and isinstance(frame.dtypes.iloc[0], np.dtype)
    values = frame.to_numpy() if alike else frame.to_numpy(dtype=np.float64, na_value=np.nan)
    checked = check(path.name, InMemory(values), labels, request, key=key)
    return Parts(checked.part, description=checked.description + dropped, unit=checked.unit)


def _drop_row_numbers(frame: pd.DataFrame) -> str:
    """Remove the column of row numbers that pandas writes by default.

    Returns:
        A note for the description of the data; "" if the table has no column of row numbers.
    """
    first = frame.columns[0] if len(frame.columns) > 1 else None
    if str(first).startswith("Unnamed: 0") and np.array_equal(frame[first].to_numpy(), np.arange(len(frame))):
        del frame[first]
        return "; left out the first column, which numbers the rows"
    return ""


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next((line.rstrip("\r\n") for line in file if line.strip()), "")
        separator = max(",;\t", key=first.count)
        cells = first.split(separator)
        numbered = cells == [str(k) for k in range(len(cells))]  # pandas writes these for columns without names
        header = 0 if numbered or not all(map(_is_number, cells)) else None
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas would drop columns beyond the header
            return pd.read_csv(
                path, sep=separator, header=header, encoding="utf-8-sig", low_memory=False, index_col=False
            )
    except pd.errors.ParserWarning:
        raise ValueError(
            f"data set {path}: expected a header with a name for each column, got {len(cells)} name{'s' * (len(cells) != 1)} "
            "above longer rows; remove comments, or complete the header."
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError) as error:
        reason = "an empty file" if isinstance(error, pd.errors.EmptyDataError) else first_line(error)
        raise ValueError(
            f"data set {path}: expected a table of numbers in UTF-8, separated by commas, semicolons or tabs, with rows of one "
            f"length, got {reason}; write the file again."
        ) from None


def _is_number(text: str) -> bool:
    if text.strip().lower() in ("true", "false"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except ImportError:
        raise ValueError(
            "data set: .parquet files need the package pyarrow, which is not installed; run pip install 'pyro-vae[parquet]', "
            "or save the table as .csv."
        ) from None
    except Exception as error:  # pyarrow raises many kinds of errors for a broken file
        if isinstance(error, OSError) and not path.stat().st_size == 0 and error.errno is not None:
            raise
        reason = "an empty file" if path.stat().st_size == 0 else first_line(error)
        raise ValueError(
            f"data set {path}: expected a complete .parquet file, got {reason}; write the file again."
        ) from None
