"""CSV cells that are safe to open in a spreadsheet."""

# The characters at which a spreadsheet reads a text cell as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(value: object) -> object:
    """A CSV cell: a text that a spreadsheet would run as a formula gets a `'` in front."""
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value
