"""Make the pool of YFCC15M from the files that CiT's own script reads, at the same places.

    python scripts/make_yfcc15m.py [the flags of `cit pool build`]

It is `cit pool build --format yfcc15m` with the paths below; a flag that is given wins.
"""

import sys

from cit_train.cli import main

DEFAULTS = {
    "--metadata": "data/yfcc100m/yfcc100m_dataset.txt",
    "--image-ids": "data/yfcc15m/flickr_unique_ids.npy",
    "--subset": "data/yfcc15m/yfcc100m_subset_data.tsv",
    "--image-root": "data/yfcc100m",
    "--out": "data/yfcc15m/pool",
}

if __name__ == "__main__":
    flags = [word for pair in DEFAULTS.items() for word in pair]
    sys.argv[1:] = ["pool", "build", "--format", "yfcc15m", *flags, *sys.argv[1:]]
    main()
