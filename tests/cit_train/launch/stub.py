"""Stands for `cit`: says what it was given, and ends as it was told: FOLDER CODE [SECONDS].

With SECONDS it waits for a request to stop, at its first try only; then it "saves" and ends with
75, and the next try ends with CODE.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

folder, code, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])


def stop(number: int, frame: FrameType | None) -> None:
    with (folder / "stops").open("a") as stream:
        stream.write(f"{signal.Signals(number).name}\n")
    sys.exit(75)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    seen = {name: os.environ.get(name) for name in names}
    rank = seen["RANK"] or "0"
    tries = len(list(folder.glob(f"try-{rank}-*")))
    (folder / f"try-{rank}-{tries}").write_text(json.dumps({"pid": os.getpid(), **seen}))
    if tries == 0 or code == 75:
        time.sleep(seconds)
    sys.stderr.write("first line\nerror: the disk is made of cheese\n")
    sys.exit(code)
