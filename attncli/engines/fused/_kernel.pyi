from typing import Any

interface: int

def builds() -> dict[str, int]: ...
def scratch(build: str, d: int, dv: int, /) -> tuple[int, int]: ...
def attend(
    build: str,
    buffers: tuple[Any, ...],
    shape: tuple[int, int, int, int, int, int, int],
    part: tuple[int, int, int, int, int, int],
    scale: float,
    cap: float,
    /,
) -> int: ...
def backward(
    build: str,
    buffers: tuple[Any, ...],
    shape: tuple[int, int, int, int, int, int, int],
    part: tuple[int, int, int, int, int, int],
    scale: float,
    cap: float,
    /,
) -> int: ...
