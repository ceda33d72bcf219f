"""Numbers as code: what closed forms and papers say, as runs that end with PASS or FAIL.

A target is data and one function: the runs to train, where its figure comes from, why its bands are as wide as they
are, and `check`, which gets the trained runs and returns the measured values with their bands. Targets are in
`closed_forms.py` and `published.py`, the command in `command.py`.

A band is fixed before the run. A target that fails is information: find out why before touching its band.
"""
