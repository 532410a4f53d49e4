"""Files that are whole or absent, here and in stores, and who may write them."""
