"""Whether the weight files of a checkpoint folder are whole, told without reading a tensor.

- Files are checked before transformers sees them, because a damaged file should be named and not be a stack trace.
- Pickled weights are refused by name: they can run code when loaded.
"""

import json
import struct
from pathlib import Path

from perplab.artifacts import read_json
from perplab.errors import PerplabError

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_weight_files(folder: Path) -> None:
    """See that the weights in `folder` are safetensors, all there, and of the length their headers promise.

    Raises:
        PerplabError: the weights are missing, pickled, or damaged.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    mend = "download or copy the model again"
    if single.exists():
        files = [single]
    elif index.exists():
        files = [folder / name for name in _shards(index, mend)]
    else:
        pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
        found = f", only pickled ones ({pickled[0]}), which can run code when loaded" if pickled else ""
        raise PerplabError(
            f"{folder} has no model.safetensors{found}",
            "convert it where you trust its author: from_pretrained then save_pretrained of transformers, or the hub's "
            "space safetensors/convert",
        )
    for file in files:
        if not file.exists():
            raise PerplabError(f"{file} does not exist but {index.name} names it", mend)
        if (fault := _safetensors_fault(file)) is not None:
            raise PerplabError(f"{file} is damaged: {fault}", mend)


def _shards(index: Path, mend: str) -> list[str]:
    try:
        return sorted(set(read_json(index, mend)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise PerplabError(f"{index} does not map weights to files", mend) from None


def _safetensors_fault(file: Path) -> str | None:
    """What is wrong with the frame of a safetensors file: 8 bytes of header length, a JSON header, the tensors."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length_bytes = stream.read(8)
        header_size = struct.unpack("<Q", length_bytes)[0] if len(length_bytes) == 8 else size
        if 8 + header_size > size:
            return f"it ends inside its header, after {size} bytes"
        try:
            header = json.loads(stream.read(header_size))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError):
            return "its header is not that of a safetensors file"
    promised = 8 + header_size + max(ends, default=0)
    return None if promised == size else f"it has {size} bytes and its header promises {promised}"
