"""Downloads in a process of its own, for tests that kill it: URL, path."""

import sys
from pathlib import Path

from cit_train.hub.download import download

if __name__ == "__main__":
    download(sys.argv[1], Path(sys.argv[2]), pauses=())
