"""Image paths spelled as they are on disk, in tables that a look showed to spell some otherwise."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.arrow_numpy import arrow_of, numpy_of, strings_of
from cit_curate.images.root import ImageRoot
from cit_curate.pool.format import names_image_file
from cit_curate.sources.image_paths import spelling_on_disk

# Asking for a file on a network disk is waiting.
_THREADS = 8


def respelled(
    tables: Iterable[pa.Table], roots: Mapping[str, ImageRoot], counts: Counter[str]
) -> Iterator[pa.Table]:
    """Tables of pairs, with each image path as it is on disk; one that leads nowhere is kept.

    Args:
        tables: The tables, those of an image one after the other.
        roots: The image root of each source whose paths are looked up.
        counts: The paths that were changed, by the source's name; they are added up here.
    """
    if not roots:
        yield from tables
        return
    last = ""
    with ThreadPoolExecutor(_THREADS) as threads:
        for table in tables:
            for name in pc.unique(table["source"]).to_pylist():
                if name not in roots:
                    continue
                is_own = numpy_of(pc.equal(table["source"], name))
                mask = arrow_of(is_own & names_image_file(table["image_uri"]))
                written = pc.unique(table["image_uri"].filter(mask))
                texts = written.to_pylist()
                found = threads.map(partial(spelling_on_disk, roots[name]), texts)
                spelled = [there or text for there, text in zip(found, texts, strict=True)]
                counts[name] += sum(
                    there != text and text != last
                    for there, text in zip(spelled, texts, strict=True)
                )
                last = texts[-1] if texts else last
                uris = table["image_uri"]
                # A uri that is not of this source has no index; it stays.
                changed = strings_of(spelled).take(pc.index_in(uris, value_set=written))
                table = table.set_column(
                    table.schema.get_field_index("image_uri"),
                    table.schema.field("image_uri"),
                    pc.if_else(mask, changed, uris),
                )
            yield table
