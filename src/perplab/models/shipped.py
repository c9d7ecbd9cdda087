"""The small model that comes with the package, under the name `pocket`."""

from pathlib import Path

from perplab.errors import PerplabError

POCKET = "pocket"
POCKET_FOLDER = Path(__file__).parent / "pocket"


def pocket_folder() -> Path:
    """The folder of the pocket model.

    Raises:
        PerplabError: this checkout has none yet.
    """
    if not (POCKET_FOLDER / "config.json").exists():
        raise PerplabError(f"the pocket model is not built ({POCKET_FOLDER} does not hold it)", "run make pocket")
    return POCKET_FOLDER
