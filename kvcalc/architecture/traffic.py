"""Traffic: what a computation costs, in the three numbers that its time follows from."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """FLOPs (2 a multiply-add) and bytes moved between memory and compute units; traffics add up."""

    flop: int = 0
    read_bytes: int = 0
    write_bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            flop=self.flop + other.flop,
            read_bytes=self.read_bytes + other.read_bytes,
            write_bytes=self.write_bytes + other.write_bytes,
        )

    def __mul__(self, times: int) -> "Traffic":
        return Traffic(flop=self.flop * times, read_bytes=self.read_bytes * times, write_bytes=self.write_bytes * times)

    @property
    def moved_bytes(self) -> int:
        return self.read_bytes + self.write_bytes

    @property
    def flop_per_byte(self) -> float | None:
        """Arithmetic intensity over the bytes read; None where nothing is read."""
        return self.flop / self.read_bytes if self.read_bytes else None
