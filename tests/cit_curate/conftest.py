"""Makes `run_fixtures` importable: with importlib mode no test folder is on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
