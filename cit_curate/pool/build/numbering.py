"""The keys that repeat an earlier one: captions get numbers, exact repeats are left out.

Each function reads the tables `keys` and `places` of the staging database, and makes `repeats` (a
reject for each key that is left out), `changes` (`changes.Changes`), and `final_keys`, the keys
with the pool's image ids. Numbers depend on the keys of the image alone, in reading order.
"""

from dataclasses import dataclass

from cit_curate.sources.pairs import MAX_IMAGE_ID_BYTES
from cit_curate.storage.sql import Connection, count_rows

# A text key that a number may make of another one.
_ENDS_IN_NUMBER = "^.+-([2-9]|[1-9][0-9]{1,8})$"


@dataclass(frozen=True)
class Renamed:
    """Images whose ids, made from names, an earlier source has too.

    Attributes:
        num_images: Their number.
        num_sources: The number of sources that they are in.
        first: The new id of the first of them.
    """

    num_images: int
    num_sources: int
    first: str


@dataclass(frozen=True)
class Numbered:
    """What became of the keys that repeat an earlier one.

    Attributes:
        rejects: The number of keys that are left out, for each reason.
        num_captions: Captions whose text key has a number.
        most: The most captions of one image and text key.
        most_key: The pair key of the first of these.
        renamed: The images that got other ids; None = none.
    """

    rejects: dict[str, int]
    num_captions: int = 0
    most: int = 1
    most_key: str = ""
    renamed: Renamed | None = None


def find_repeated_rows(sql: Connection) -> Numbered:
    """Find the rows of images that an earlier row has pairs of: they are left out whole."""
    sql.execute("CREATE VIEW final_keys AS SELECT * FROM keys")
    sql.execute(
        "CREATE TABLE several AS SELECT image_id, min(seq) AS first FROM keys "
        "WHERE text_key IS NOT NULL GROUP BY image_id HAVING count(*) > 1"
    )
    sql.execute(
        'CREATE TABLE repeats AS SELECT keys.seq, keys.source, keys."row", '
        "'duplicate_key' AS reason, "
        "'image ' || keys.image_id || ' has pairs of an earlier line' AS detail "
        "FROM keys JOIN several USING (image_id) "
        "WHERE keys.text_key IS NOT NULL AND keys.seq > several.first ORDER BY keys.seq"
    )
    sql.execute(
        "CREATE VIEW changes AS SELECT seq, 0::BIGINT AS number, 0::BIGINT AS num_prefixes "
        "FROM repeats"
    )
    return Numbered(_rejects(sql, "duplicate_key"))


def rename_images(sql: Connection) -> Renamed | None:
    """Find new ids for the images whose id is a name that an earlier place has too.

    The new id is the old one behind the prefix of its place and `/`; twice if that is an id too. An
    image whose new id would be too long keeps its own. The table `new_ids` has those that are new.
    """
    sql.execute(
        "CREATE TABLE new_ids AS SELECT place, image_id, 1::BIGINT AS num_prefixes, "
        "min(seq) AS first, '' AS new_id FROM keys JOIN (SELECT image_id, min(place) AS owner "
        "FROM keys GROUP BY image_id HAVING min(place) <> max(place) AND bool_or(is_named)) "
        "USING (image_id) WHERE is_named AND place <> owner GROUP BY place, image_id"
    )
    if not count_rows(sql, "new_ids"):
        return None
    made = (
        "UPDATE new_ids SET new_id = repeat(prefix || '/', num_prefixes) || image_id "
        "FROM places WHERE places.place = new_ids.place"
    )
    sql.execute(made)
    while _prefix_again(sql):
        sql.execute(made)
    sql.execute(f"DELETE FROM new_ids WHERE strlen(new_id) > {MAX_IMAGE_ID_BYTES}")  # noqa: S608
    if not count_rows(sql, "new_ids"):
        return None
    row = sql.execute(
        "SELECT count(*), count(DISTINCT place), arg_min(new_id, first) FROM new_ids"
    ).fetchall()[0]
    return Renamed(*row)


def _prefix_again(sql: Connection) -> int:
    """Add a prefix to each new id that another image has, and return their number."""
    ((count,),) = sql.execute(
        "UPDATE new_ids SET num_prefixes = num_prefixes + 1 FROM ("
        "SELECT place, image_id FROM new_ids WHERE new_id IN (SELECT image_id FROM keys) "
        "UNION SELECT place, image_id FROM new_ids "
        "QUALIFY row_number() OVER (PARTITION BY new_id ORDER BY first) > 1) AS taken "
        "WHERE taken.place = new_ids.place AND taken.image_id = new_ids.image_id"
    ).fetchall()
    return int(count)


def number_captions(sql: Connection, renamed: Renamed | None) -> Numbered:
    """Number the captions of one image and text key, but for those that equal an earlier one.

    Args:
        sql: The staging database.
        renamed: The images in `new_ids`; None = there is no such table.
    """
    _make_final_keys(sql, has_new_ids=renamed is not None)
    sql.execute(
        "CREATE TABLE several AS SELECT image_id, text_key, min(seq) AS first FROM final_keys "
        "GROUP BY image_id, text_key HAVING count(*) > 1"
    )
    sql.execute(
        "CREATE TABLE of_several AS SELECT seq, first, caption_hash FROM final_keys "
        "JOIN several USING (image_id, text_key)"
    )
    sql.execute(
        "CREATE TABLE kept AS SELECT *, row_number() OVER (PARTITION BY first ORDER BY seq) "
        "AS number FROM (SELECT first, caption_hash, min(seq) AS seq FROM of_several "
        "GROUP BY first, caption_hash)"
    )
    _leave_out_numbers_of_keys(sql)
    sql.execute(
        'CREATE TABLE repeats AS SELECT of_several.seq, later.source, later."row", '
        "'duplicate_pair' AS reason, 'its text is that of ' || later.image_id || '_' || "
        "later.text_key || CASE WHEN kept.number > 1 THEN '-' || kept.number ELSE '' END || "
        "', from ' || earlier.source || ' row ' || earlier.\"row\" AS detail "
        "FROM of_several JOIN kept USING (first, caption_hash) "
        "JOIN final_keys AS later ON later.seq = of_several.seq "
        "JOIN keys AS earlier ON earlier.seq = kept.seq "
        "WHERE of_several.seq > kept.seq ORDER BY of_several.seq"
    )
    _make_changes(sql, has_new_ids=renamed is not None)
    ((num_captions,),) = sql.execute("SELECT count(*) FROM kept WHERE number > 1").fetchall()
    most, most_key = 1, ""
    if num_captions:
        ((most, most_key),) = sql.execute(
            "SELECT number, image_id || '_' || text_key FROM kept JOIN final_keys "
            "ON final_keys.seq = kept.first ORDER BY number DESC, kept.first LIMIT 1"
        ).fetchall()
    for table in ("several", "of_several", "kept"):
        sql.execute(f"DROP TABLE {table}")
    rejects = _rejects(sql, "duplicate_pair")
    return Numbered(rejects, num_captions, most, most_key, renamed)


def _make_final_keys(sql: Connection, *, has_new_ids: bool) -> None:
    if not has_new_ids:
        sql.execute("CREATE VIEW final_keys AS SELECT * FROM keys")
        return
    sql.execute(
        "CREATE TABLE renamed AS SELECT seq, new_id, num_prefixes FROM keys "
        "JOIN new_ids USING (place, image_id) WHERE is_named"
    )
    sql.execute(
        "CREATE VIEW final_keys AS SELECT keys.* REPLACE "
        "(coalesce(new_id, image_id) AS image_id) FROM keys LEFT JOIN renamed USING (seq)"
    )


def _leave_out_numbers_of_keys(sql: Connection) -> None:
    """Let the numbers of an image leave out those that make a text key which it has already."""
    sql.execute(
        "CREATE TABLE taken AS SELECT first, n - row_number() OVER (PARTITION BY first ORDER BY n) "
        "+ 1 AS from_number FROM (SELECT DISTINCT image_id, "
        "regexp_replace(text_key, '-[0-9]+$', '') AS text_key, "
        "regexp_extract(text_key, '[0-9]+$')::BIGINT AS n FROM final_keys "
        "WHERE text_key IN (SELECT DISTINCT text_key FROM keys WHERE regexp_matches(text_key, ?))) "
        "JOIN several USING (image_id, text_key)",
        [_ENDS_IN_NUMBER],
    )
    if not count_rows(sql, "taken"):
        return
    # The k-th number left out, from 0, moves all numbers from itself - k on.
    sql.execute(
        "UPDATE kept SET number = number + num_before FROM (SELECT kept.seq, count(*) AS "
        "num_before FROM kept JOIN taken USING (first) WHERE from_number <= number "
        "GROUP BY kept.seq) AS moved WHERE moved.seq = kept.seq AND number > 1"
    )


def _make_changes(sql: Connection, *, has_new_ids: bool) -> None:
    numbers = (
        "(SELECT seq, number FROM kept WHERE number > 1 "
        "UNION ALL SELECT seq, 0::BIGINT AS number FROM repeats)"
    )
    if has_new_ids:
        query = (
            "SELECT seq, coalesce(number, 1) AS number, "  # noqa: S608
            "coalesce(num_prefixes, 0) AS num_prefixes "
            f"FROM {numbers} FULL JOIN renamed USING (seq)"
        )
    else:
        query = f"SELECT seq, number, 0::BIGINT AS num_prefixes FROM {numbers}"  # noqa: S608
    sql.execute(f"CREATE TABLE changes AS {query} ORDER BY seq")


def _rejects(sql: Connection, reason: str) -> dict[str, int]:
    count = count_rows(sql, "repeats")
    return {reason: count} if count else {}
