"""Sweeps: many runs from one command, each a process and a folder of its own.

command_line  `resume_sweep=`, and the name of a sweep that has none
composing     the configs of the jobs, what they share composed once
launcher      the loop over the jobs: skip, start, note the end
job           one job: what makes it the same as another, its state, the journal
processes     slots, the fork server (what it does first is in `preloaded`), what a job's process does
search        searches with Optuna; `pruning` ends trials early
table         what a terminal shows
listing       `vae-lab-ls`: the runs and sweeps that there are
"""
