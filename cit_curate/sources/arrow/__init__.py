"""What the sources have in common that consist of Arrow columns: Parquet and Arrow files."""
