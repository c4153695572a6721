"""Starting must stay cheap, and the program must be the same by every name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import attncli as package
from tests.support.program import Door, environment

HEAVY = ("numpy", "torch", "matplotlib", "rich", "ml_dtypes", "orjson", "onnx", "hypothesis")


def loaded_after(code: str) -> set[str]:
    """The heavy packages that ``code`` loads in a fresh interpreter."""
    show = f"\nimport sys; print(*(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + show],
        capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import attncli",
        "import attncli.cli",
        "import sys; sys.argv = ['attncli', '--version']; from attncli.cli import main; main()",
        "import sys; sys.argv = ['attncli', 'compute', '--help']\n"
        "from attncli.cli import main; main(); print()",
    ],
    ids=["package", "cli", "version", "help"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert loaded_after(code) == set()


def test_compute_loads_what_it_needs_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[[1, 0], [0, 1]]")
    code = f"import sys; sys.argv = ['attncli', 'compute', {str(path)!r}]\n"
    assert loaded_after(code + "from attncli.cli import main; main(); print()") <= {
        "numpy",
        "orjson",
    }


def test_version(attncli: Door) -> None:
    ran = attncli("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"attncli {package.__version__}\n", "")


def test_installed_command_is_the_same_program(attncli: Door) -> None:
    command = shutil.which("attncli", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("attncli is not installed beside this Python")
    done = subprocess.run(
        [command, "compute", "--help"], capture_output=True, text=True, env=environment()
    )
    assert (done.returncode, done.stdout) == (0, attncli("compute", "--help").out)


def test_without_a_command_the_help_is_shown(attncli: Door) -> None:
    ran = attncli()
    assert ran.code == 0
    assert ran.out == attncli("--help").out
    assert "compute" in ran.out


def test_help_is_plain_and_fits_80_columns(attncli: Door) -> None:
    from attncli.cli import COMMANDS

    for command in COMMANDS:
        ran = attncli(command, "--help", FORCE_COLOR="1")
        assert ran.code == 0
        assert "\x1b" not in ran.out
        assert max(map(len, ran.out.splitlines())) <= 80
        assert "Examples:" in ran.out


def test_every_option_says_what_it_does() -> None:
    import typer

    from attncli.cli import COMMANDS, app

    group = typer.main.get_command(app)
    for name in COMMANDS:
        for param in group.get_command(None, name).params:  # type: ignore[attr-defined]
            assert getattr(param, "help", None), f"{name}: {param.name} has no help"


def test_completion_is_offered(attncli: Door) -> None:
    ran = attncli(
        _ATTNCLI_COMPLETE="complete_bash", COMP_WORDS="attncli compute --mask-pol", COMP_CWORD="2"
    )
    assert ran.out.split() == ["--mask-polarity"]
    ran = attncli(
        _ATTNCLI_COMPLETE="complete_bash", COMP_WORDS="attncli compute --format ", COMP_CWORD="3"
    )
    assert ran.out.split() == ["table", "json", "csv", "markdown", "ndjson"]
