"""The catalog `pool.duckdb`: SQL over the Parquet files; it can always be rebuilt from them."""

from pathlib import Path

import duckdb

from cit_curate.pool.format import CATALOG_NAME, PoolManifest
from cit_curate.storage.durable import atomic_file, sweep_temporary
from cit_curate.storage.sql import open_shared, parquet


def rebuild_catalog(folder: Path, manifest: PoolManifest) -> Path:
    """Write the catalog again: tables `sources`, `shards`; views `pairs`, `images`, `rejects`.

    The views name the pool's folder, so a moved pool needs a new catalog (`cit pool repair`).

    Returns:
        The catalog's path.
    """
    path = folder / CATALOG_NAME
    sweep_temporary(folder, below=False, name=CATALOG_NAME)
    # Otherwise DuckDB would replay writes to the old catalog into the new one.
    path.with_name(f"{CATALOG_NAME}.wal").unlink(missing_ok=True)
    with atomic_file(path) as temporary, open_shared(temporary) as connection:
        sql = connection.execute
        # Otherwise each row is a transaction of its own: 4 ms.
        sql("BEGIN")
        sql("CREATE TABLE sources (name VARCHAR, path VARCHAR, format VARCHAR, image_root VARCHAR, "
            "bytes BIGINT, num_records BIGINT)")  # fmt: skip
        sql("CREATE TABLE shards (path VARCHAR, num_rows BIGINT, num_images BIGINT, bytes BIGINT, "
            "sha256 VARCHAR)")  # fmt: skip
        connection.executemany(
            "INSERT INTO sources VALUES (?, ?, ?, ?, ?, ?)",
            [
                (
                    entry.name,
                    entry.path,
                    entry.format,
                    entry.image_root,
                    entry.bytes,
                    entry.num_records,
                )
                for entry in manifest.sources
            ],
        )
        connection.executemany(
            "INSERT INTO shards VALUES (?, ?, ?, ?, ?)",
            [
                (
                    part.file.path,
                    part.file.rows,
                    sum(images for _, images in part.row_groups),
                    part.file.bytes,
                    part.file.sha256,
                )
                for part in manifest.parts
            ],
        )
        pairs = parquet([folder / part.file.path for part in manifest.parts])
        rejects = parquet([folder / entry.path for entry in manifest.reject_parts])
        sql(f"CREATE VIEW pairs AS SELECT * FROM {pairs}")  # noqa: S608
        sql(f"CREATE VIEW rejects AS SELECT * FROM {rejects}")  # noqa: S608
        sql(
            "CREATE VIEW images AS SELECT image_id, any_value(image_uri) AS image_uri, "
            "any_value(source) AS source, count(*) AS num_pairs, list(text_key) AS text_keys "
            "FROM pairs GROUP BY image_id"
        )
        sql("COMMIT")
    return path


def catalog_problem(folder: Path, manifest: PoolManifest) -> str | None:
    """Why the catalog does not fit this pool, or None if it does."""
    path = folder / CATALOG_NAME
    if not path.is_file():
        return f"{path} is missing"
    try:
        with open_shared(path, read_only=True) as connection:
            row = connection.execute("SELECT count(*) FROM pairs").fetchone()
            shards = connection.execute("SELECT sha256 FROM shards").fetchall()
    except duckdb.Error as error:
        return f"{path} cannot be read: {error}"
    hashes = [part.file.sha256 for part in manifest.parts]
    if row != (manifest.num_pairs,) or [sha256 for (sha256,) in shards] != hashes:
        return f"{path} shows another state of the pool"
    return None
