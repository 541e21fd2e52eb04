"""What every stage of kormed-edge shares, and the runtime that serves the model."""

__version__ = "0.1.0"
