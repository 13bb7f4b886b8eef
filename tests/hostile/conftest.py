"""The campaign borrows the report's synthetic run and its parser."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "report"))
