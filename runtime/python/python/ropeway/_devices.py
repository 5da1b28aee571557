"""What this machine has."""

from ropeway._native import DeviceInfo, MissingBackend, probe


class Devices(list[DeviceInfo]):
    """The devices that can be opened, and in :attr:`missing` why other backends have none. Prints as a table."""

    missing: list[MissingBackend]
    """The backends that have no device here, each with the reason and a remedy."""

    def __init__(self, found: list[DeviceInfo], missing: list[MissingBackend]) -> None:
        super().__init__(found)
        self.missing = missing

    def __str__(self) -> str:
        lines = [f"{info.device:<10} {info.execution:<9} {info.name}" for info in self]
        lines += [f"missing: {backend.backend}: {backend.reason}; {backend.remedy}" for backend in self.missing]
        return "\n".join(lines)


def devices() -> Devices:
    """Asks every backend for its devices.

    Each tells by ``execution`` what does the work: ``"hardware"``, the named chip; ``"software"``, a driver on the host's processor;
    ``"emulated"``, a double of a vendor's driver; ``"recorded"``, nothing, and such a device runs no op.
    """
    return Devices(*probe())
