"""`proxsae laws` on all operators and wrong operators of a family, of which `tests/test_cli.py` takes a few."""

from tests.test_cli import laws_of_ksparse


def test_laws_of_one_family_hold_and_leave_no_survivor(capsys, device):
    laws_of_ksparse(capsys, device)
