"""The door does not know torch: neither its modules nor the command that starts it load it before an engine starts."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import pkgutil, sys
import dsv4.serve
for module in pkgutil.iter_modules(dsv4.serve.__path__):
    __import__(f"dsv4.serve.{module.name}")
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "jinja2", "fastapi"})
print(heavy)
"""


def test_importing_the_server_does_not_import_torch() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("[]\n", "")
