"""Images that are web addresses: a pool may name them, and cit never fetches them."""

# A regular expression.
WEB_ADDRESS = "^https?://"


def fetch_advice(where: str, num_images: int) -> str:
    """What to tell about images that are web addresses.

    Args:
        where: The pool.
        num_images: How many images have an address.
    """
    are = "image is a web address" if num_images == 1 else "images are web addresses"
    return (
        f"{num_images:,} {are} in {where}, which cit does not fetch; img2dataset does: run it on "
        "the table with --output_format webdataset, then cit pool build on the folder that it made"
    )


def fetch_selected_advice(where: str, num_images: int) -> str:
    """What to tell when the pairs of a pool are selected by their captions alone."""
    are = "image is a web address" if num_images == 1 else "images are web addresses"
    return (
        f"{num_images:,} {are} in {where}, which cit does not fetch; to fetch those of the pairs "
        "that are selected: cit export RUN FILE.parquet, then img2dataset --url_list FILE.parquet "
        "--input_format parquet --url_col image_uri --caption_col caption "
        '--save_additional_columns \'["image_id","text_key"]\' --output_format webdataset, and '
        "cit pool build on the folder that it made"
    )
