"""Every kind of law, by its name on the command line and in files."""

import os
from typing import Any

from perplab.artifacts import read_json
from perplab.errors import PerplabError
from perplab.laws.baselines import StraightLine
from perplab.laws.chinchilla import ChinchillaLaw
from perplab.laws.downstream import DownstreamErrorLaw
from perplab.laws.law import READ_MEND, Law
from perplab.laws.scaling import OverTrainingLaw, PowerLaw

LAWS: dict[str, type[Law]] = {
    law.kind: law for law in (OverTrainingLaw, ChinchillaLaw, PowerLaw, DownstreamErrorLaw, StraightLine)
}


def read_law(path: str | os.PathLike[str]) -> Any:
    """Read a law of any kind.

    Raises:
        PerplabError: the file is missing or is not a law.
    """
    record = read_json(path, READ_MEND)
    kind = record.get("law") if isinstance(record, dict) else None
    if kind not in LAWS:
        raise PerplabError(f"{path} is not a law of any kind: {', '.join(LAWS)}", READ_MEND)
    return LAWS[kind].of_record(record, path)
