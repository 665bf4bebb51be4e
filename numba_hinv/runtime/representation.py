"""How results are shown: a line for the terminal, and a table of the same facts for a notebook.

Neither computes anything that is not there, and neither grows with the arrays in a result.
"""

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

# Arrays of more entries, and text of more letters, are not written out.
_FEW_ENTRIES, _LONGEST = 6, 200


def shortened(value: object) -> str:
    """A value as text: numbers with six digits, large arrays by their shape."""
    if isinstance(value, (str, bool, np.bool_)) or value is None:
        text = str(value)
    elif isinstance(value, (float, np.floating)):
        text = f"{value:.6g}"
    elif isinstance(value, np.ndarray):
        text = _array(value)
    elif type(value) in (tuple, list):
        text = f"({', '.join(map(shortened, value))})"  # type: ignore[call-overload]
    else:
        text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _array(value: np.ndarray[Any, Any]) -> str:
    if value.ndim == 0:
        return shortened(value.item())
    if value.ndim == 1 and value.size <= _FEW_ENTRIES:
        return f"[{', '.join(shortened(entry) for entry in value.tolist())}]"
    return f"<{value.dtype} array of shape {value.shape}>"


def line(name: str, facts: Mapping[str, object]) -> str:
    """``name(fact=value, ...)``."""
    return f"{name}({', '.join(f'{fact}={shortened(value)}' for fact, value in facts.items())})"


def table(title: str, facts: Mapping[str, object]) -> str:
    """An HTML table with a fact in each row, in which all text is escaped; those that are None are left out."""
    rows = "".join(
        f'<tr><th style="text-align: left">{html.escape(fact)}</th>'
        f'<td style="text-align: left">{html.escape(shortened(value))}</td></tr>'
        for fact, value in facts.items()
        if value is not None
    )
    caption = f'<caption style="caption-side: top; text-align: left"><b>{html.escape(title)}</b></caption>'
    return f"<table>{caption}<tbody>{rows}</tbody></table>"


def memory(num_bytes: int) -> str:
    """A number of bytes in a unit that makes it readable."""
    size, units = float(num_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024.0 and len(units) > 1:
        size, units = size / 1024.0, units[1:]
    return f"{size:.3g} {units[0]}" if size < 1000.0 else f"{size:.0f} {units[0]}"
