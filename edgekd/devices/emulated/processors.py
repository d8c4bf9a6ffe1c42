"""The processors that can be emulated on this host."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.errors import DeviceError, nearest


@dataclass(frozen=True)
class Processor:
    """A processor that can be emulated.

    Attributes:
        name: The name that a user gives it.
        arch: Its architecture, as :func:`platform.machine` has it.
        model: QEMU's ``-cpu``.
        cpuinfo: For ARM, one core of ``/proc/cpuinfo``. ONNX Runtime chooses its kernels by it, and crashes with the
            host's; the features must be those that QEMU emulates for the model.
    """

    name: str
    arch: str
    model: str
    cpuinfo: str = ""

    @property
    def native(self) -> bool:
        """Whether it runs this host's own Python and packages, and needs no user space of its own."""
        return not self.cpuinfo


def _arm(name: str, part: str, variant: str, revision: str, features: str) -> Processor:
    lines = {
        "processor": "0",
        "Features": features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": variant,
        "CPU part": part,
        "CPU revision": revision,
    }
    return Processor(name, "aarch64", name, "".join(f"{key}\t: {value}\n" for key, value in lines.items()) + "\n")


_PROCESSORS = {
    processor.name: processor
    for processor in (
        _arm("cortex-a72", "0xd08", "0x0", "3", "fp asimd aes pmull sha1 sha2 crc32 cpuid"),
        _arm(
            "cortex-a76", "0xd0b", "0x4", "1",
            "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
        ),
        # Without the features of which QEMU only warns that it lacks them; none of them is arithmetic.
        Processor("haswell", "x86_64", "Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid"),
    )
}  # fmt: skip


def processors() -> tuple[str, ...]:
    """Return the names of all processors that can be emulated."""
    return tuple(_PROCESSORS)


def find_processor(name: str) -> Processor:
    """Return a processor by its name, with or without "cortex-".

    Raises:
        DeviceError: it is not known.
    """
    processor = _PROCESSORS.get(name) or _PROCESSORS.get(f"cortex-{name}")
    if processor is None:
        raise DeviceError(f"no processor '{name}' can be emulated{nearest(name, _PROCESSORS)}")
    return processor
