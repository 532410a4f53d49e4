"""Make the pool of YFCC100M from the files that CiT's own script reads, at the same places.

    python scripts/make_yfcc100m.py [the flags of `cit pool build`]

It is `cit pool build --format yfcc100m` with the paths below; a flag that is given wins.
"""

import sys

from cit_train.cli import main

DEFAULTS = {
    "--metadata": "data/yfcc100m/yfcc100m_dataset.txt",
    "--image-ids": "data/yfcc100m/flickr_unique_ids.npy",
    "--image-root": "data/yfcc100m",
    "--out": "data/yfcc100m/pool",
}

if __name__ == "__main__":
    flags = [word for pair in DEFAULTS.items() for word in pair]
    sys.argv[1:] = ["pool", "build", "--format", "yfcc100m", *flags, *sys.argv[1:]]
    main()
