"""Options and fixtures: `pytest --device cuda` runs the same tests on a GPU.

Two workers run the tests, with one thread each: more threads only wait for each other on problems this small.
`pytest -n 0` runs all in one process, as a debugger needs it; `pytest tests/long` runs the tests that take minutes.
"""

import os
import shutil

import pytest
import torch

import proxsae.testing as pt


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="torch device of the tests: cpu, cuda or cuda:N")
    parser.addoption("--browser", help="look at the report in this browser (default: in one that is found, if any)")


def pytest_configure(config):
    if config.getoption("--device") == "cpu":  # read when Triton is imported: its kernels run in its interpreter
        os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # of the workers, which start later
        os.environ.setdefault(name, "1")
    torch.zeros(1, device=config.getoption("--device"))  # a device that was asked for and is absent is a failure
    browser = config.getoption("--browser")
    if browser is not None and shutil.which(browser) is None:  # likewise
        msg = f"--browser {browser}: no such program"
        raise pytest.UsageError(msg)


def pytest_generate_tests(metafunc):
    device = metafunc.config.getoption("--device")
    if "backend" in metafunc.fixturenames:
        backends = (*pt.NUMPY, *pt.torch_backends(device))
        metafunc.parametrize("backend", backends, ids=[b.name for b in backends])


@pytest.fixture
def device(request):
    return request.config.getoption("--device")
