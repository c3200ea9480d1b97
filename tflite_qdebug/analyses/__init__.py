"""What is computed from models and data; each analysis stands alone and returns data that reports read."""
