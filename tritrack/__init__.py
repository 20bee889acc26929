"""Graph-neural-network track finding, served by NVIDIA Triton."""

__version__ = "0.1.0"
