"""What several commands read in the same way."""

import sys


def text_argument(text: str) -> str:
    """The text of an argument, where - stands for standard input."""
    return sys.stdin.read() if text == "-" else text
