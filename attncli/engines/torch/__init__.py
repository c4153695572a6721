"""The PyTorch engine: SDPA where it can say the problem, tiles where not."""


def missing() -> str | None:
    """Return why this engine cannot run here, or None."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            return "PyTorch is not installed: pip install 'attncli[torch]'"
        return f"PyTorch is installed but does not load ({error}): install it anew"
    return None
