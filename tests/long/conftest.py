"""The figures of reliability: what the campaigns of this folder tried, as a table at the end of the run.

A test adds to them with the fixture `figures`; the numbers travel from the workers of pytest-xdist in the reports.
`pytest tests/long --seed 1` is another campaign.
"""

import platform
from collections import Counter

import pytest

TOTAL = Counter()


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="of the campaigns in tests/long (default 0)")


@pytest.fixture
def seed(request):
    return request.config.getoption("--seed")


@pytest.fixture
def figures(record_property):
    """`figures(name, n)` adds n to a number of the table."""
    return lambda name, n=1: record_property("figure", (name, n))


def pytest_runtest_logreport(report):
    if report.when == "call":
        for key, value in report.user_properties:
            if key == "figure":
                TOTAL[value[0]] += value[1]
    TOTAL["tests that failed"] += report.failed


def pytest_terminal_summary(terminalreporter, config):
    if len(TOTAL) > 1:
        terminalreporter.section(f"reliability, seed {config.getoption('--seed')}, {platform.machine()}")
        for name, n in sorted(TOTAL.items()):
            terminalreporter.line(f"{n:12,d}  {name}")
