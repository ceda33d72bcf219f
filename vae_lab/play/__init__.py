"""The playground: a trained run in a browser. `subject.py` is what can be done with a run, `app.py` shows it."""
