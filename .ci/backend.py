"""The build backend: setuptools, and two things that pyproject.toml cannot tell it."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403
from setuptools.command.egg_info import manifest_maker

manifest_maker.template = ".ci/MANIFEST.in"  # what a source distribution holds


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel in a fresh folder: ``build/`` would hand on files that are gone by now."""
    with TemporaryDirectory() as fresh:
        options = ["build", f"--build-base={fresh}"]
        settings = {"--global-option": options, **(config_settings or {})}
        return build_meta.build_wheel(wheel_directory, settings, metadata_directory)
