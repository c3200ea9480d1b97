"""Ways to show a run; they read a ``Run`` and never a model."""
