"""What the Edge TPU takes of a model: prediction (`partition`), and what its compiler did (`compiled`, `compiler_log`)."""
