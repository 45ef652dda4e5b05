"""Forms of a few operations that XLA:CPU runs several times as fast. `kernels/ops.py` chooses them.

The results are those of the plain forms up to rounding. Measurements: docs/notes/kernels.md, cpu_speed.md.
"""
