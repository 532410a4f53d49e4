"""How similar each scanned caption is to its nearest metadata entry."""
