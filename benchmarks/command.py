"""The command line of a benchmark."""

from __future__ import annotations

import argparse


def described(text: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is a module's docstring, with its layout."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=text, formatter_class=layout)
