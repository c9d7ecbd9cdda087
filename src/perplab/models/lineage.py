"""How a model came to be, told by a file beside its weights.

- `perplab.json` holds one `Lineage`: the verb that made the model, its config and seed, the parent, the versions and
  the machine it ran on, and what was measured on the way.
- A parent carries its own lineage, nested to the first ancestor, so a folder moved to another machine still tells its
  whole story.
- Weights are named by the SHA-256 of their safetensors bytes, never by a path or a date.
- Values are JSON from the moment they are recorded, so what is read back equals what was written.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from perplab.artifacts import read_json, write_json
from perplab.errors import PerplabError

FILE_NAME = "perplab.json"
_READ_MEND = f"put the {FILE_NAME} back that perplab wrote, or delete it to load the model without its lineage"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the verb ran on.

    Args:
        cpu: model name of the processor.
        cores: logical cores of the machine.
    """

    cpu: str
    cores: int

    @classmethod
    def current(cls) -> Self:
        """This machine."""
        return cls(cpu=_processor_name(), cores=os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The model a verb started from.

    Args:
        name: the name or path it was loaded by.
        fingerprint: `weights_fingerprint` of its folder; None where it never was on disk.
        lineage: how it came to be itself, if known.
    """

    name: str
    fingerprint: str | None = None
    lineage: "Lineage | None" = None


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """How a model came to be.

    Args:
        verb: what made it, for example `train` or `quantize`.
        config: the verb's config as JSON values.
        seed: the seed of its randomness; None where there was none.
        parent: the model it started from; None for a model trained from random weights.
        versions: package name to version string.
        machine: what it ran on.
        created: UTC time in ISO 8601, to the second.
        figures: what was measured while making it, name to number.
    """

    verb: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    parent: Parent | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Machine
    created: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def record(
        cls,
        verb: str,
        *,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        parent: Parent | None = None,
        figures: Mapping[str, float] | None = None,
    ) -> Self:
        """A lineage made here and now: versions, machine and time are filled in."""
        return cls(
            verb=verb,
            config=_as_json(config or {}),
            seed=seed,
            parent=parent,
            versions={package: _version(package) for package in ("perplab", "torch", "transformers")},
            machine=Machine.current(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            figures=_as_json(figures or {}),
        )

    @property
    def history(self) -> "tuple[Lineage, ...]":
        """Every known step, the first ancestor first and this one last."""
        ancestors = self.parent.lineage.history if self.parent and self.parent.lineage else ()
        return (*ancestors, self)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write `perplab.json` into `folder`, atomically.

        Raises:
            PerplabError: the file cannot be written.
        """
        write_json(Path(folder) / FILE_NAME, asdict(self))

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "Lineage | None":
        """The lineage beside the weights in `folder`; None where there is no `perplab.json`.

        Raises:
            PerplabError: the file is not JSON, or a key in it is unknown or missing.
        """
        path = Path(folder) / FILE_NAME
        return _lineage(read_json(path, _READ_MEND), str(path)) if path.exists() else None


def weights_fingerprint(folder: str | os.PathLike[str]) -> str:
    """SHA-256, in hexadecimal, over the contents of every safetensors file of `folder` in the order of their names.

    Raises:
        PerplabError: there is no safetensors file.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise PerplabError(f"{folder} has no safetensors file", "name a folder that holds a saved model")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            for block in iter(partial(stream.read, _BLOCK_BYTES), b""):
                digest.update(block)
    return digest.hexdigest()


def _lineage(value: Any, where: str) -> Lineage:
    members = _checked_members(Lineage, value, where)
    machine = _checked_members(Machine, members["machine"], f"{where} under machine")
    parent = members["parent"]
    return Lineage(**members | {"machine": Machine(**machine), "parent": parent and _parent(parent, where)})


def _parent(value: Any, where: str) -> Parent:
    members = _checked_members(Parent, value, f"{where} under parent")
    lineage = members["lineage"]
    return Parent(**members | {"lineage": lineage and _lineage(lineage, f"{where} under parent.lineage")})


def _checked_members(kind: type[Lineage | Machine | Parent], value: Any, where: str) -> dict[str, Any]:
    """`value`, once it is known to be a JSON object with exactly the fields of `kind`."""
    if not isinstance(value, dict):
        raise PerplabError(f"{where} holds {value!r} where {kind.__name__.lower()} needs an object", _READ_MEND)
    names = {member.name for member in fields(kind)}
    for key in value.keys() - names:
        raise PerplabError(f"{where} has the unknown key {key!r}", f"remove it, or upgrade perplab; or {_READ_MEND}")
    for key in names - value.keys():
        raise PerplabError(f"{where} lacks the key {key!r}", _READ_MEND)
    return value


def _as_json(value: Any) -> Any:
    """What JSON makes of `value`: tuples become lists; paths and dtypes their names."""
    return json.loads(json.dumps(value, default=str))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor_name() -> str:
    """The processor's model name, which the standard library knows on no Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
