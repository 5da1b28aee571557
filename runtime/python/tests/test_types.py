"""The type stubs say what is there, and a typed user's program checks against them."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parent


def run(*arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stubs_are_of_the_native_half():
    run("mypy.stubtest", "ropeway._native")


def test_the_package_checks():
    run("mypy", "--strict", "--no-incremental", "-p", "ropeway")


def test_users_are_checked():
    examples = sorted(map(str, (PACKAGE / "examples").glob("*.py")))
    assert examples
    run("mypy", "--strict", "--no-incremental", "typed.py", *examples)
