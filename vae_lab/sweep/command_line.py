"""The command line of a sweep: a name that the same command finds again, and `resume_sweep=DIR`."""

import hashlib
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from vae_lab.config.explain import quote
from vae_lab.config.roles import is_identity
from vae_lab.errors import RunError
from vae_lab.runs.resume import LIMITS
from vae_lab.sweep.job import JOURNAL, key_of, read_journal


def sweep_arguments(arguments: list[str], conf: Path) -> list[str]:
    """Complete the command line of a sweep; other command lines are returned as they are.

    A sweep without `sweep.name` gets one that is made of what it varies and what it sets, so that the same command
    continues it, also with more values to try.

    Args:
        arguments: of the command, without its name.
        conf: the folder of the config groups.

    Returns:
        Arguments for Hydra.

    Raises:
        ValueError: if the settings beside `resume_sweep=DIR` would change what its jobs are, higher limits aside, or if
            a single run is told how to run jobs.
        RunError: if the folder of `resume_sweep=DIR` holds no sweep.
    """
    if resumed := [a.removeprefix("resume_sweep=") for a in arguments if a.startswith("resume_sweep=")]:
        others = [a for a in arguments if not a.startswith("resume_sweep=") and not is_multirun(a)]
        return resumed_command(resumed[-1].strip("'\""), others)
    if not any(map(is_multirun, arguments)):
        for argument in arguments:
            if argument.startswith(("sweep.n_jobs=", "sweep.jobs_per_device=", "sweep.on_failure=")):
                raise ValueError(f"{argument} has no effect on a single run, only on a sweep, vae-lab -m")
        return arguments
    named = [a for a in arguments if a.startswith(("sweep.name=", "hydra.sweep.dir=")) and a != "sweep.name=null"]
    name = None if named else study_of(arguments, conf)
    return insert(arguments, f"sweep.default_name={name}") if name else arguments


def is_multirun(argument: str) -> bool:
    """Whether it is Hydra's flag for a sweep, which may be shortened."""
    return argument == "-m" or (argument.startswith("--m") and "--multirun".startswith(argument))


def resumed_command(sweep: str, settings: list[str]) -> list[str]:
    """The arguments with which a sweep was last started, with further settings, wherever its folder is now."""
    if not sweep:
        raise ValueError("resume_sweep needs the folder of a sweep: resume_sweep=outputs/sweeps/NAME")
    folder = Path(sweep).resolve()
    if wrong := [setting for setting in settings if is_identity(key_of(setting)) and key_of(setting) not in LIMITS]:
        raise ValueError(f"{wrong[0]} would make resume_sweep={folder} another sweep; repeat its command instead")
    last: list[str] = []
    at_work: list[str] = []  # the last command that started a job: a refused one is not what to go on with
    for event in read_journal(folder):
        last = event["arguments"] if event["event"] == "sweep" else last
        at_work = last if event["event"] == "start" else at_work
    command = at_work or last
    if not command:
        raise RunError(f"{folder} is not the folder of a sweep: there is no {folder / JOURNAL}")
    limits = [setting for setting in settings if key_of(setting) in LIMITS]
    overrides = OverridesParser.create().parse_overrides([*limits, *filter(is_setting, command)])
    if varied := {o.key_or_group for o in overrides if o.is_sweep_override()} & set(map(key_of, limits)):
        key = min(varied)
        raise ValueError(f"{key} is what the sweep varies; it is the same for all jobs where resume_sweep raises it")
    settings = [f"hydra.sweep.dir={quote(folder)}", *settings, *(["sweep.longer=True"] if limits else [])]
    now = set(map(key_of, settings))
    before = [argument for argument in command if not is_multirun(argument) and key_of(argument) not in now]
    return ["--multirun", *insert(before, *settings)]


def insert(arguments: list[str], *overrides: str) -> list[str]:
    """Put overrides before the others: Hydra wants all of them together."""
    at = next((i for i, argument in enumerate(arguments) if is_setting(argument)), len(arguments))
    return [*arguments[:at], *overrides, *arguments[at:]]


def is_setting(argument: str) -> bool:
    """Whether it is `key=value`, and no flag of Hydra's."""
    return "=" in argument and argument[0] != "-"


def config_flags(arguments: list[str]) -> list[str]:
    """Those of a sweep's arguments that say where its config files are."""
    found = []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument.startswith(("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")):
            found += [argument] if "=" in argument else [argument, following]
    return found


def study_of(arguments: list[str], conf: Path) -> str | None:
    """What a sweep is of, whatever the values that its keys take: the default name.

    `GROUPS_KEYS_HASH`: the groups that are set, the keys that vary; None where Hydra will refuse the command.
    """
    others = [a for a in arguments if not is_setting(a) and not is_multirun(a)]
    try:
        overrides = OverridesParser.create().parse_overrides(list(filter(is_setting, arguments)))
    except OverrideParseException:
        return None
    overrides = [o for o in overrides if is_identity(o.key_or_group) or o.key_or_group == "hydra/sweeper"]
    varied = [o.key_or_group for o in overrides if o.is_sweep_override()]
    fixed = [o for o in overrides if not o.is_sweep_override()]
    groups = [o.get_value_element_as_str() for o in fixed if (conf / o.key_or_group).is_dir()]
    content = repr((sorted(varied), sorted(o.input_line for o in fixed), *sorted(others)))
    words = [word for word in groups if word != "none"] + [key.rpartition(".")[2] for key in varied] or ["defaults"]
    readable = "-".join(word for word in words if word.replace("_", "").isalnum())[:60]
    return f"{readable}_{hashlib.sha256(content.encode()).hexdigest()[:6]}"
