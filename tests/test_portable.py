"""What only Unix has is not needed to import any module, nor to train without a checkpoint: Windows has none of it."""

import subprocess
import sys
from pathlib import Path

import proxsae as px

# Libraries come first: on Unix they may use what is then taken away.
CODE = """
import importlib, os, sys
import numpy as np, scipy.optimize, torch, torch.distributed
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
del os.sysconf, os.fork, os.getuid
import proxsae as px
for name in sys.argv[1:]:
    importlib.import_module(name)
rows = np.eye(8, dtype=np.float32).repeat(5, 0)
got = px.train(px.topk_sae(8, 16, 2), rows, steps=3, batch_size=8, progress=False)
assert got["loss"] >= 0
"""


def test_every_module_is_imported_and_an_sae_trained_without_what_only_unix_has():
    package = Path(px.__file__).parent
    files = [f.relative_to(package.parent).with_suffix("") for f in package.rglob("*.py")]
    names = [".".join(f.parts).removesuffix(".__init__") for f in files if not {"kernels", "provenance"} & {*f.parts}]
    command = [sys.executable, "-c", CODE, *sorted(name for name in names if name != "proxsae.__main__")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
