"""Flags of `perplab evaluate --suite quantization`."""

from dataclasses import dataclass
from pathlib import Path

from perplab.errors import PerplabError


@dataclass(frozen=True, kw_only=True)
class CompressionFlags:
    """What the quantization suite compresses, and where its results go."""

    methods: str = "rtn,gptq"
    """Quantisers with commas between them: rtn, gptq, awq, spqr, quantease, llm-int8."""
    bits: str = "8,4,3,2"
    """Bits a weight, with commas between them."""
    group_size: int | None = None
    """Columns that share a scale; by default each method's own."""
    calibration: str | None = None
    """Text for the methods that need it: builtin:NAME, a file or folder, or hf:DATASET. By default the training side of
    the corpus, or of the world."""
    windows: int = 128
    """Windows of calibration text."""
    length: int | None = None
    """Tokens a window; by default as many as the model has positions, at most 2,048."""
    limit_size: int = 200_000
    """Measure on at most so many bytes of the corpus; 0 reads everything."""
    world: int | None = None
    """Seed of the generated world that the model was trained on: its tasks are asked as well."""
    timed: bool = True
    """Time generation as well."""
    out: Path | None = None
    """Folder that keeps finished cells: the same command goes on where it was interrupted."""
    report: Path | None = None
    """HTML page to write."""

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods, apart."""
        return tuple(name for name in self.methods.split(",") if name)

    @property
    def bit_widths(self) -> tuple[int, ...]:
        """The numbers of bits, apart.

        Raises:
            PerplabError: one is no number.
        """
        try:
            return tuple(int(width) for width in self.bits.split(",") if width)
        except ValueError:
            raise PerplabError(f"bits is {self.bits!r}", "give whole numbers with commas, such as 4,3") from None
