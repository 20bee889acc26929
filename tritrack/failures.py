"""What a user did wrong comes out as one sentence on stderr, with an exit code that says what kind it is."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED, MISUSED = 1, 2
"""Exit codes: it went wrong on the way; it could not begin (wrong options, a library is missing)."""

OPTIONAL_LIBRARIES = frozenset(
    {
        "acts", "faiss", "matplotlib", "mplhep", "numba", "onnx", "onnxruntime", "onnxscript", "psutil",
        "pynvml", "pythia8mc", "pytriton", "safetensors", "torch",
    }
)  # fmt: skip
"""Modules that come with an extra; that any other is missing is no mistake of the user's."""


class UsageError(ValueError):
    """Options that do not go together, or a value that an option does not take."""


@contextmanager
def one_sentence(*, extra: str | None) -> Iterator[None]:
    """Turn tritrack's own errors, and the system's, into a sentence on stderr and an exit code.

    Parameters
    ----------
    extra
        The extra to name where an optional library is missing.

    Raises
    ------
    SystemExit
        In place of those errors. Any other is a fault of tritrack's and keeps its traceback.
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in OPTIONAL_LIBRARIES or extra is None:
            raise
        errors.print(f"tritrack: {library} is not installed: in tritrack's folder, pip install '.[{extra}]'")
        raise SystemExit(MISUSED) from None
    except UsageError as error:
        errors.print(f"tritrack: {error}")
        raise SystemExit(MISUSED) from None
    except Exception as error:
        # The messages of tritrack's own errors, and the system's (no such file, no permission), are sentences.
        if not (type(error).__module__.startswith("tritrack.") or isinstance(error, OSError)):
            raise
        errors.print(f"tritrack: {error}")
        raise SystemExit(FAILED) from None
