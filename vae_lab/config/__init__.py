"""From YAML to trusted, checked objects, and from errors to one line.

check        every setting is read by something and is of the kind that its reader asks for
instantiate  the only door from config to objects; `build_vae`
composing    Hydra, asked for a config within any process
defaults     what a key is that an older config lacks
roles        what each key is to identity, resume, comparison and export
explain      Hydra's errors in our words
saved        the config in a run folder, which may be a stranger's
secrets      what is redacted or refused
arguments    the command line of eval, compare and export; `help` says what `vae-lab --help` does
nested       walking nested containers
"""
