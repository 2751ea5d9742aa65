"""`posttrain COMMAND --help`: the page, or what is wrong with the words beside it."""

from posttrain.config import help_pages
from posttrain.console import print_error
from posttrain.errors import PosttrainError


def show(name: str, words: list[str]) -> int:
    """Print the page of the command `name`; returns the exit code."""
    try:
        print(help_pages.page(name, words))
    except PosttrainError as error:
        print_error(error)
        return 1
    return 0
