"""What a search found: how its trials went, and which settings mattered; both are Optuna's own figures.

They are made of the runs themselves and not of the study, so that they are there for any sweep, also for one that is
online, and hold what the tables hold.
"""

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.figures import are_numbers, axis_title, comparable, finish, focus, is_wide, titled
from vae_lab.compare.groups import as_text
from vae_lab.compare.runs import Entry
from vae_lab.metrics.catalogue import find

if TYPE_CHECKING:
    from optuna import Study

MIN_TRIALS = 10  # for importances
MAX_TRIALS = 1000  # which are a few seconds of work
MAX_SETTINGS = 12


def figures(comparison: Comparison) -> tuple[list[go.Figure], str]:
    """The history of a search, the importances of any comparison with enough runs; a sentence for what is left out."""
    trials = [run for group in comparable(comparison, comparison.sort) for run in group.completed]
    trials = [run for run in trials if math.isfinite(run.value(comparison.sort))]
    numbers = {run.trial for run in trials if run.trial is not None}
    is_search = bool(numbers) and len(numbers) == len(trials) and max(numbers) < MAX_TRIALS + len(trials)
    has_many = len(trials) >= MIN_TRIALS and len(comparison.keys) > 1
    if not (is_search or has_many) or not find(comparison.sort).better:
        return [], ""
    if not find_spec("optuna"):
        return [], "The history and the importances of settings need the package optuna: pip install optuna."
    from optuna import visualization
    from optuna.importance import FanovaImportanceEvaluator

    study = study_of(comparison, trials, is_search)
    left = f" Only the first {MAX_SETTINGS} settings are looked at." * (len(comparison.keys) > MAX_SETTINGS)
    left += f" Only the first {MAX_TRIALS} runs are looked at." * (len(trials) > MAX_TRIALS)
    left += f" Importances are shown of {MIN_TRIALS} completed trials or more." * (len(trials) < MIN_TRIALS)
    left += " No history: the runs are not those of one search." * (bool(numbers) and not is_search)
    title, drawn = titled(comparison, comparison.sort, comparable(comparison, comparison.sort)), list[go.Figure]()
    if is_search:
        history = visualization.plot_optimization_history(study)
        focus(history, "y", [run.value(comparison.sort) for run in trials])
        drawn.append(finish(history, f"{title}: trials, best so far", "trial", axis_title(comparison.sort), []))
    if has_many:
        try:
            forest = FanovaImportanceEvaluator(seed=0)  # Optuna's default looks at the best tenth alone
            importances = visualization.plot_param_importances(study, evaluator=forest)
            importances.update_xaxes(range=(0, 1.25 * max(importances.data[0].x)))  # room for the numbers on a phone
            importances.update_yaxes(ticks="outside", tickcolor="rgba(0, 0, 0, 0)")  # names do not touch the bars
            drawn.append(finish(importances, f"{title}: importance", "share of the variance", "", []))
        except (ValueError, RuntimeError) as error:  # where all values are equal
            left += f" No importances: {error}."
    return drawn, left


def study_of(comparison: Comparison, runs: list[Entry], is_search: bool) -> "Study":
    """The runs as a study in memory, a trial for each; numbers that have no run are failed trials."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = {id(entry): i for i, entry in enumerate(comparison.entries)}
    space: dict[str, BaseDistribution] = {}
    for key in comparison.keys[:MAX_SETTINGS]:
        values = [comparison.table[key][place[id(run)]] for run in runs]
        if len(set(map(as_text, values))) < 2:
            continue
        if are_numbers(values):
            space[key] = FloatDistribution(min(values), max(values), log=is_wide(values))
        else:
            space[key] = CategoricalDistribution(sorted(set(map(as_text, values))))
    by_number = dict(enumerate(runs[:MAX_TRIALS]))
    if is_search:
        by_number = {run.trial: run for run in runs if run.trial is not None}
    study = optuna.create_study(direction="maximize" if find(comparison.sort).better == "higher" else "minimize")
    for number in range(max(by_number) + 1):
        if run := by_number.get(number):
            params: dict[str, Any] = {}
            for key, kind in space.items():
                value = comparison.table[key][place[id(run)]]
                params[key] = float(value) if isinstance(kind, FloatDistribution) else as_text(value)
            study.add_trial(create_trial(params=params, distributions=space, value=run.value(comparison.sort)))
        else:
            study.add_trial(create_trial(state=TrialState.FAIL))
    return study
