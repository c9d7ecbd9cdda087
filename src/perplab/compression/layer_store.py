"""What became of each layer, and where an interrupted run keeps what it has finished.

- One file a layer, beside the folder that the run will write.
- A run is told apart by its settings, its model and its calibration tokens. A run with other settings is not continued
  and not thrown away: whoever started it has to remove it.
- A run that was killed after its model was written, and before this was cleared away, writes it once more.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from perplab.artifacts import atomic_file, read_json, write_json
from perplab.compression.solvers import Solution
from perplab.errors import PerplabError
from perplab.kernels.quantized_matrix import QuantizedMatrix
from perplab.models import Lineage

_SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """What became of a layer.

    Args:
        path: of the layer.
        shape: (out, in).
        tokens: calibration tokens it has seen.
        relative_error: change of its output relative to the output, squared, on those; None without calibration.
        trace: that error after each sweep of a solver with sweeps, and of the solution last.
        bits_per_weight: codes, scales, zero points and outliers.
        outliers: weights that stay.
        seconds: of solving.
    """

    path: str
    shape: tuple[int, int]
    tokens: int
    relative_error: float | None
    trace: tuple[float, ...]
    bits_per_weight: float
    outliers: int
    seconds: float


class LayerStore:
    """Finished layers of a run that will write `out`.

    Args:
        out: the folder of the finished model.
        settings: what decides the result.

    Raises:
        PerplabError: `out` exists, or an unfinished run with other settings lies beside it.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.unfinished")
        plain = json.loads(json.dumps(settings))
        file = self.folder / _SETTINGS
        if out.exists() and not (file.exists() and _is_result(out, plain)):
            raise PerplabError(f"{out} exists", "name a folder that does not exist, or remove it")
        if file.exists() and read_json(file, "remove the folder") != plain:
            raise PerplabError(
                f"{self.folder} holds an unfinished run with other settings", "remove it, or name another folder"
            )
        write_json(file, plain)

    def __contains__(self, path: str) -> bool:
        return self._file(path).exists()

    def read(self, path: str) -> tuple[Solution, LayerRecord]:
        """A finished layer."""
        with safe_open(self._file(path), "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            record = json.loads(opened.metadata()["record"])
        matrix = QuantizedMatrix(tensors["codes"], tensors["scale"], tensors["zero"], record["matrix_bits"])
        outliers = None
        if "outlier_values" in tensors:
            outliers = torch.sparse_coo_tensor(
                tensors["outlier_indices"], tensors["outlier_values"], matrix.codes.shape, is_coalesced=True
            )
        trace = tuple(record["layer"]["trace"])
        layer = record["layer"] | {"trace": trace, "shape": tuple(record["layer"]["shape"])}
        return Solution(matrix, outliers, trace, tensors.get("input_scale")), LayerRecord(**layer)

    def write(self, path: str, solution: Solution, record: LayerRecord) -> None:
        """Keep a finished layer."""
        matrix = solution.matrix
        tensors = {"codes": matrix.codes, "scale": matrix.scale, "zero": matrix.zero}
        if solution.input_scale is not None:
            tensors["input_scale"] = solution.input_scale
        if solution.outliers is not None:
            outliers = solution.outliers.coalesce()
            tensors |= {"outlier_indices": outliers.indices(), "outlier_values": outliers.values()}
        metadata = {"record": json.dumps({"matrix_bits": matrix.bits, "layer": asdict(record)})}
        with atomic_file(self._file(path)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)

    def remove(self) -> None:
        """Forget all of it, once the finished model is on the disk."""
        shutil.rmtree(self.folder)

    def _file(self, path: str) -> Path:
        return self.folder / f"{path}.safetensors"


def _is_result(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a run with these settings wrote the model in `out`."""
    lineage = Lineage.read(out) if out.is_dir() else None
    return lineage is not None and json.loads(json.dumps(lineage.config)) == settings.get("config")
