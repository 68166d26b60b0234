"""The commands in the documentation are commands that there are, with options that there are."""

from __future__ import annotations

import argparse
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from gdfusion_ros.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def commands(page: str) -> list[str]:
    """The lines of a page's code blocks that call ``gdfusion``, without what a shell does with them."""
    found, inside = [], False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif inside and line.strip().startswith("gdfusion "):
            found.append(line.strip())
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_can_be_given(page: str) -> None:
    for line in commands(page):
        name, *arguments = shlex.split(line, comments=True)[1:]
        assert name in COMMANDS, line
        module = import_module(f"gdfusion_ros.cli.{name.replace('-', '_')}")
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        try:
            parser.parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page}: {line}")


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_of_a_page_is_there(page: str) -> None:
    for part in (ROOT / page).read_text(encoding="utf-8").split("](")[1:]:
        target = part.partition(")")[0]
        if target.endswith((".png", ".jpg", ".svg")) and "://" not in target:
            assert ((ROOT / page).parent / target).is_file(), target
