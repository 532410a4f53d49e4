"""Cells of a CSV file that a spreadsheet opens."""

# What a spreadsheet takes for a formula when a text cell starts with it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(value: object) -> object:
    """A CSV cell: a text that a spreadsheet would run as a formula gets a `'` in front."""
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value
