"""The configs of a sweep's jobs, as Hydra composes them one by one, but what they have in common only once."""

import pickle
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig


class Composer:
    """Composes the configs of jobs, each equal to what Hydra's `load_sweep_config` gives.

    Hydra merges the files of the options that are chosen, and then sets values in it, one after the other. So jobs that
    choose the same options set their values in copies of the same config: a hundredth of the work.

    Args:
        loader: Hydra's.
        config: of the sweep.
    """

    def __init__(self, loader: ConfigLoaderImpl, config: DictConfig):
        name, settings = config.hydra.job.config_name, list(config.hydra.overrides.hydra)
        parser, load = OverridesParser.create(), loader.load_sweep_config
        self.apply = loader._apply_overrides_to_config
        self.parse = cache(lambda line: parser.parse_overrides([line])[0])
        self.is_group = cache(lambda key: bool(loader.get_group_options(key, None, name, settings)))
        self.chosen = cache(lambda *lines: pickle.dumps(load(config, list(lines))))  # to be copied six times as fast

    def compose(self, *lines: str) -> DictConfig:
        """The config with these overrides; `HydraException` if there is none."""
        overrides = [self.parse(line) for line in lines]
        values = list(filter(self.is_value, overrides))
        config = pickle.loads(self.chosen(*(o.input_line for o in overrides if o not in values)))
        self.apply(values, config)
        own = [override for override in overrides if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in own]
        config.hydra.job.override_dirname = get_overrides_dirname(own, **config.hydra.job.config.override_dirname)
        return config

    def is_value(self, override: Override) -> bool:
        """Whether an override is set in what the files say; one that Hydra will refuse in a job is not."""
        if override.key_or_group.startswith("hydra") or override.is_sweep_override():
            return False
        return isinstance(override.value(), dict) or not self.is_group(override.key_or_group)
