"""Quantities for people: bytes and seconds, SI inside and formatted only when shown."""


def size(count: float) -> str:
    """Bytes for people, such as ``135 MB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds for people, such as ``12 s`` or ``3 min 20 s``."""
    if seconds < 1:
        return "under 1 s"
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"
