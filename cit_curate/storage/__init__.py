"""Files that are whole or absent, on disks and in object stores, and the locks of their writers."""
