"""The unit vectors of tests/data, made with the official code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "data" / "deepseek_v4" / "fixtures"
UNIT: dict[str, Any] = json.loads((FIXTURES / "unit_vectors.json").read_text())
