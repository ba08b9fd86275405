"""Faults, for real: kills, stops, two at once, full disks, damaged files; and what is left then.

Every try is the project in a folder of its own, with its own store, cache and outputs. Afterwards
the same command runs undisturbed, and what is there is compared with a run that nothing happened
to: weights and history bit for bit, and all that MLflow has of it.

    python -m benchmarks.faults
"""
