"""What a tritonserver's log says about why it did not start."""

from __future__ import annotations

import re

# Triton logs a Python step's exception as one line, its traceback behind "\n\nAt:".
_MODEL = re.compile(
    r"failed to load '([^']+)' version \d+: (?:Internal: |Invalid argument: )?(.*?)(?:\\n\\nAt:|\"$)",
    re.MULTILINE,
)
_ENDPOINT = re.compile(r"failed to start (\S+) service: (?:Unavailable - )?(.*?)\s*\"$", re.MULTILINE)
_OTHER = re.compile(r"^(?:E\d{4} .*?\] +\"?|error: )(.*?)\"?$", re.MULTILINE)
# What any machine without a GPU logs.
_HARMLESS = re.compile(r"CudaDriverHelper|unable to create stream|DCGM|NVML")


def explain(log: str) -> str:
    """Return the log's own reasons: steps that did not load, ports that were taken, or its last errors."""
    reasons = [f"step {name}: {reason}" for name, reason in _MODEL.findall(log)]
    reasons += [f"{service}: {reason}" for service, reason in _ENDPOINT.findall(log)]
    if not reasons:
        reasons = [line for line in _OTHER.findall(log) if not _HARMLESS.search(line)][-3:]
    if not reasons:
        reasons = [line for line in log.splitlines() if line.strip()][-3:]
    return "; ".join(dict.fromkeys(reasons)) or "its log is empty"


def port_taken(log: str) -> bool:
    """Whether the server gave up because somebody else listens on one of its ports."""
    return any("already in use" in reason for _, reason in _ENDPOINT.findall(log))
