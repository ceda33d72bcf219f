"""Hydra composes the config, and what it says about Hydra itself is checked before Hydra obeys.

A config file may set anything below `hydra`: callbacks and logging handlers, which Hydra builds at once, and variables
of the environment, such as the list of trusted packages. Hydra itself refuses only a list of known dangerous calls.
"""

import re
from collections.abc import Iterator
from typing import Any

import hydra._internal.hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, ListConfig, OmegaConf

from vae_lab.config.secrets import refuse_written_secrets

# Launchers and sweepers, and what a search is made of, which the sweeper looks up by name.
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.", "optuna.samplers.", "optuna.pruners.")
_FOREIGN = re.compile(r"\$\{(?!hydra[.:]|sweep\.)")  # an interpolation that could bring in anything


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader. Every config that Hydra acts on comes from here, also those of the jobs of a sweep."""

    def _process_config_searchpath(self, config_name: str | None, overrides: list, repo: Any) -> None:
        """Let Hydra look for config files where the main one says, unless it names a package, which would be imported.

        Raises:
            ValueError: naming what is not a folder.
        """
        loaded = repo.load_config(config_path=config_name) if config_name else None
        found = OmegaConf.select(loaded.config, "hydra.searchpath") if loaded else None
        for path in found if isinstance(found, ListConfig) else ():
            if "://" in str(path) and not str(path).startswith("file://"):
                raise ValueError(f"hydra.searchpath in a config must name folders, got {path!r}; write file://FOLDER")
        super()._process_config_searchpath(config_name, overrides, repo)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.validated: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose a job once: Hydra does it to validate the job, and its launcher again, a tenth of a second each."""
        key = tuple(sweep_overrides)
        if key in self.validated:
            return self.validated.pop(key)
        self.validated[key] = super().load_sweep_config(master_config, sweep_overrides)
        return self.validated[key]

    def _load_configuration_impl(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Compose, then check.

        Raises:
            ValueError: if a file is not plain YAML, holds a secret, or sets what is not for a config to set.
        """
        try:
            config = super()._load_configuration_impl(*args, **kwargs)
        except yaml.YAMLError as error:
            raise ValueError(f"a config file is not plain YAML: {' '.join(str(error).split())}") from error
        plain = OmegaConf.to_container(config)
        check_hydra(plain.pop("hydra"))
        refuse_written_secrets(plain)
        return config


hydra._internal.hydra.ConfigLoaderImpl = CheckedLoader  # Hydra has no setting for it


def refuse_pickles(arguments: list[str]) -> None:
    """Refuse the option with which Hydra loads a pickle, which can hold code.

    Args:
        arguments: of the command, without its name.

    Raises:
        ValueError: if the option is given, under its name or a beginning of it.
    """
    if any(argument.startswith("--e") for argument in arguments):
        raise ValueError("--experimental-rerun would run a pickle; continue a run with resume=RUN_DIR")


def check_hydra(settings: dict[str, Any]) -> None:
    """Refuse settings of Hydra that build objects or change the environment.

    Args:
        settings: the node `hydra` of a composed config, unresolved.

    Raises:
        ValueError: naming the key.
    """
    if settings["callbacks"]:
        raise ValueError("hydra.callbacks cannot be set: a config may only name classes that are trusted")
    if not isinstance(settings["job"], dict) or settings["job"]["env_set"]:
        raise ValueError("hydra.job.env_set cannot be set: set variables in the environment of the command")
    if settings["output_subdir"] is not None:
        raise ValueError(
            f"hydra.output_subdir must be null, got {settings['output_subdir']!r}: the run keeps its config itself, "
            "and Hydra's would overwrite that of a run that is there already"
        )
    for key in ("job_logging", "hydra_logging"):
        if not isinstance(settings[key], dict) or settings[key].get("root") is not None:
            raise ValueError(f"hydra.{key} cannot be set: train.log holds the log; choose hydra/{key}=none")
    for key, value in values(settings, "hydra"):
        if key.endswith("._target_") and not str(value).startswith(PLUGINS):
            raise ValueError(f"{key} must be a plugin of Hydra, got {value!r}")
        if f"{key}.".startswith(("hydra.launcher.", "hydra.sweeper.")) and _FOREIGN.search(str(value)):
            raise ValueError(f"{key} must refer to settings of Hydra or of the sweep only, got {value!r}")


def values(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value in nested containers, with its dotted key."""
    if not isinstance(node, dict | list):
        yield key, node
        return
    for name, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield from values(child, f"{key}.{name}")
